"""Validate objects as strictly as possible: a field that no schema knows is a violation.

The schemas of kubernetes-validate check Kubernetes' own kinds; the CRDs of their owners check other kinds. It does not
check rules in CEL, which CRDs and the API server have too.
"""

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.package.deploy.tools import CRDS

__all__ = ["KUBERNETES", "WITHOUT_SCHEMA", "find_violations", "is_builtin"]

KUBERNETES = ("1.29", "1.31", "1.33", "1.35", kubernetes_validate.latest_version())
"""Of Kubernetes' versions, the chart's oldest, the newest known, and some between."""
WITHOUT_SCHEMA = ("policy.linkerd.io",)
"""Groups whose CRDs are in no module of Go's proxy: their objects are not checked."""
_OURS = ("v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1")


def is_builtin(tree: dict[str, Any]) -> bool:
    """Whether the kind is Kubernetes' own."""
    return tree["apiVersion"] in _OURS


def find_violations(tree: dict[str, Any], version: str) -> list[str]:
    """Return the violations of an object in a version of Kubernetes, one line each."""
    if is_builtin(tree):
        try:
            kubernetes_validate.validate(tree, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [_format_error(error)]
        return []
    validator = jsonschema.Draft202012Validator(_find_schema(tree["apiVersion"], tree["kind"]))
    return [_format_error(error) for error in validator.iter_errors(tree)]


def _format_error(error: Any) -> str:
    return f"{'/'.join(map(str, error.path))}: {error.message}"


def _find_schema(api_version: str, kind: str) -> dict[str, Any]:
    group, version = api_version.split("/")
    for crd in _read_crds():
        if (crd["spec"]["group"], crd["spec"]["names"]["kind"]) == (group, kind):
            schema = next(
                each["schema"]["openAPIV3Schema"] for each in crd["spec"]["versions"] if each["name"] == version
            )
            return _close_schema({**schema, "properties": {**schema["properties"], **_HEAD}})
    raise LookupError(f"there is no CRD of {api_version} {kind}")


_HEAD = {
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    "metadata": {
        "properties": {
            "name": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    },
}


def _read_crds() -> Iterator[dict[str, Any]]:
    for path in sorted(CRDS.iterdir()):
        for tree in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if tree and tree.get("kind") == "CustomResourceDefinition":
                yield tree


def _close_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse other fields in every object whose fields are listed. `oneOf` and the like choose among these."""
    made = dict(schema)
    if "properties" in made:
        made["properties"] = {name: _close_schema(each) for name, each in made["properties"].items()}
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = _close_schema(made["additionalProperties"])
    if "items" in made:
        made["items"] = _close_schema(made["items"])
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made
