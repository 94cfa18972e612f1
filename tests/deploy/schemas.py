"""Whether an object is what the API server takes, strictly: a field that no schema knows is a fault.

Kubernetes' own kinds are held against the schemas of kubernetes-validate, others' against their owners' CRDs. Not seen:
rules in CEL, which CRDs and the API server have beside their schemas.
"""

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.deploy.tools import CRDS

__all__ = ["KUBERNETES", "faults", "is_builtin"]

KUBERNETES = ("1.29", "1.31", "1.33", "1.35", kubernetes_validate.latest_version())
"""Of Kubernetes' versions, the chart's oldest, the newest known, and some between."""
_OURS = ("v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1")


def is_builtin(tree: dict[str, Any]) -> bool:
    """Whether the kind is Kubernetes' own."""
    return tree["apiVersion"] in _OURS


def faults(tree: dict[str, Any], version: str) -> list[str]:
    """Give what is wrong with an object in a version of Kubernetes, a line each."""
    if is_builtin(tree):
        try:
            kubernetes_validate.validate(tree, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [_line(error)]
        return []
    validator = jsonschema.Draft202012Validator(_crd(tree["apiVersion"], tree["kind"]))
    return [_line(error) for error in validator.iter_errors(tree)]


def _line(error: Any) -> str:
    return f"{'/'.join(map(str, error.path))}: {error.message}"


def _crd(api_version: str, kind: str) -> dict[str, Any]:
    group, version = api_version.split("/")
    for crd in _crds():
        if (crd["spec"]["group"], crd["spec"]["names"]["kind"]) == (group, kind):
            schema = next(
                each["schema"]["openAPIV3Schema"] for each in crd["spec"]["versions"] if each["name"] == version
            )
            return _strict({**schema, "properties": {**schema["properties"], **_HEAD}})
    raise LookupError(f"expected a CRD of {api_version} {kind}, found none")


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


def _crds() -> Iterator[dict[str, Any]]:
    for path in sorted(CRDS.iterdir()):
        for tree in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if tree and tree.get("kind") == "CustomResourceDefinition":
                yield tree


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Close every object whose fields are listed. `oneOf` and the like only choose among them, and stay."""
    made = dict(schema)
    if "properties" in made:
        made["properties"] = {name: _strict(each) for name, each in made["properties"].items()}
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(made["additionalProperties"])
    if "items" in made:
        made["items"] = _strict(made["items"])
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made
