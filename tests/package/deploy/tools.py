"""Tools for deploy/ that pip can't install: kustomize, built from source, and the schemas of other kinds.

Both come through Go's proxy, pinned by their sums: kustomize/go.sum, and crds.json, which names module, licence and
file. `python -m tests.package.deploy.tools` installs them next to this Python, and prints what is missing and so not
checked.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.kit.processes import run_program

__all__ = ["CRDS", "KUSTOMIZE"]

HERE = Path(__file__).parent
CRDS = Path(sys.prefix) / "crds"
"""One YAML file per row of crds.json, and other useful files of the module."""
KUSTOMIZE = Path(sys.prefix) / "bin" / "kustomize"
BUILD_S_MAX = 900
PACKAGE = "sigs.k8s.io/kustomize/kustomize/v5"
WORDS = {"istio.io/api": ("annotation/annotations.yaml", "label/labels.yaml")}
"""Lists of the annotations and labels that a module's owner knows."""


class ToolError(Exception):
    """A tool failed."""


def build_kustomize() -> None:
    if not _is_current(KUSTOMIZE, HERE / "kustomize" / "go.sum"):
        print("Building kustomize into .venv-deploy (once; about a minute) ...", flush=True)
        _run_go("build", "-o", str(KUSTOMIZE), PACKAGE, folder=HERE / "kustomize")


def fetch_crds() -> None:
    if _is_current(CRDS, HERE / "crds.json"):
        return
    part = CRDS.with_suffix(".part")
    for old in (CRDS, part):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir()
    for row in json.loads((HERE / "crds.json").read_text(encoding="utf-8")):
        source = _download_module(row)
        for name in (row["file"], *WORDS.get(row["module"], ())):
            shutil.copyfile(source / name, part / Path(name).name)
    part.rename(CRDS)


def _download_module(row: dict[str, str]) -> Path:
    version = f"{row['module']}@{row['version']}"
    got: dict[str, Any] = json.loads(_run_go("mod", "download", "-json", version, folder=HERE))
    if got["Sum"] != row["sum"]:
        sys.exit(f"{row['module']}: expected the sum {row['sum']}, found {got['Sum']}")
    return Path(got["Dir"])


def _run_go(*arguments: str, folder: Path) -> str:
    """Return the output. Raises FileNotFoundError without Go, and ToolError if it fails."""
    code, out, err = run_program("go", *arguments, cwd=folder, timeout_s=BUILD_S_MAX)
    if code:
        raise ToolError(f"`go {' '.join(arguments[:2])}` failed: {(err or out).strip()}")
    return out


def _is_current(target: Path, source: Path) -> bool:
    return target.exists() and target.stat().st_mtime >= source.stat().st_mtime


def main() -> None:
    unchecked = {
        build_kustomize: "that kustomize and Helm build the same objects",
        fetch_crds: "objects of Istio, Prometheus Operator, Gateway API and KEDA against their schemas",
    }
    for make, what in unchecked.items():
        try:
            make()
        except FileNotFoundError:
            print(f"NOT CHECKED: {what}: there is no go on this machine")
        except ToolError as error:
            print(f"NOT CHECKED: {what}: {error}")


if __name__ == "__main__":
    main()
