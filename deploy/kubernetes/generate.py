"""Write the kustomize base and overlays from the Helm chart. `--check` says whether they are current.

The chart is the one source. The base is its render with the defaults, a file an object, as the templates have it. An
overlay is what a mesh's render has beyond that: an object that the base lacks as a file, one that differs as a patch.
So `kustomize build` of an overlay gives what the chart gives.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from helm_python.chart import Chart

__all__ = ["CHART", "OVERLAYS", "documents", "files"]

HERE: Final = Path(__file__).parent
CHART: Final = HERE.parent / "helm" / "ollm-bridge"
OVERLAYS: Final = {"plain": "", "istio": "istio", "linkerd": "linkerd"}
"""An overlay -> the chart's `mesh`."""
_HEAD: Final = (
    "# Written by generate.py from deploy/helm/ollm-bridge, whose values and comments are the ones to edit.\n"
)

Key = tuple[str, str]
Tree = dict[str, Any]


def documents(values: Mapping[str, Any]) -> dict[Key, str]:
    """Render the chart, and give each object's text by its kind and name."""
    with Chart.load(CHART) as chart:
        rendered = chart.render(dict(values), name=CHART.name)
    found = {}
    for path, text in sorted(rendered.items()):
        for document in text.split("\n---\n") if path.endswith(".yaml") else ():
            if (tree := yaml.safe_load(document)) is not None:
                lines = "\n".join(line.rstrip() for line in document.strip().splitlines())
                found[tree["kind"], tree["metadata"]["name"]] = f"{lines}\n"
    return found


def files() -> dict[str, str]:
    """Give the text of each file, by its path from here."""
    base = documents({})
    made = {f"base/{_file(key)}": _HEAD + text for key, text in base.items()}
    made["base/kustomization.yaml"] = _kustomization({"resources": sorted(map(_file, base))})
    for overlay, mesh in OVERLAYS.items():
        made |= {f"overlays/{overlay}/{name}": text for name, text in _overlay(base, documents({"mesh": mesh})).items()}
    return made


def _overlay(base: dict[Key, str], wanted: dict[Key, str]) -> dict[str, str]:
    if lost := base.keys() - wanted.keys():
        raise ValueError(f"expected a mesh to add objects and to change some, found it without {sorted(lost)}")
    added = {_file(key): _HEAD + text for key, text in wanted.items() if key not in base}
    patches = {
        key: operations
        for key in sorted(base)
        if (operations := list(_difference(yaml.safe_load(base[key]), yaml.safe_load(wanted[key]), "")))
    }
    tree: Tree = {"resources": ["../../base", *sorted(added)]}
    if patches:
        tree["patches"] = [
            {"path": f"patch-{_file(key)}", "target": {"kind": key[0], "name": key[1]}} for key in patches
        ]
    written = {f"patch-{_file(key)}": _HEAD + _dump(operations) for key, operations in patches.items()}
    return added | written | {"kustomization.yaml": _kustomization(tree)}


def _difference(old: Any, new: Any, path: str) -> Iterator[Tree]:
    """Give the operations of RFC 6902 that make the one the other. Lists are compared item by item, from the first."""
    if isinstance(old, list) and isinstance(new, list):
        for number, (ours, theirs) in enumerate(zip(old, new, strict=False)):
            yield from _difference(ours, theirs, f"{path}/{number}")
        yield from ({"op": "remove", "path": f"{path}/{number}"} for number in reversed(range(len(new), len(old))))
        yield from ({"op": "add", "path": f"{path}/-", "value": item} for item in new[len(old) :])
        return
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield {"op": "replace", "path": path, "value": new}
        return
    for name in sorted(old.keys() | new.keys()):
        inner = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
        if name not in new:
            yield {"op": "remove", "path": inner}
        elif name not in old:
            yield {"op": "add", "path": inner, "value": new[name]}
        else:
            yield from _difference(old[name], new[name], inner)


def _file(key: Key) -> str:
    kind, name = key
    return f"{kind.lower()}{name.removeprefix(CHART.name)}.yaml"


def _kustomization(tree: Tree) -> str:
    return _HEAD + _dump({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **tree})


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _dump(tree: Any) -> str:
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120))


def main() -> int:
    """Write the files, or with --check compare them."""
    wanted = {HERE / path: text for path, text in files().items()}
    there = {path for place in ("base", "overlays") for path in (HERE / place).rglob("*") if path.is_file()}
    if "--check" not in sys.argv:
        for path in there - wanted.keys():
            path.unlink()
        for path, text in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path for path, text in wanted.items() if path not in there or path.read_text(encoding="utf-8") != text]
    for path in sorted({*stale, *(there - wanted.keys())}):
        print(f"{path.relative_to(HERE)} is not what the chart gives: run `make kubernetes`", file=sys.stderr)
    return 1 if stale or there - wanted.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
