"""Tools for deploy/ that pip can't install: kustomize, built from source, and the schemas of other kinds.

Both come through Go's proxy, pinned by their sums: kustomize/go.sum, and crds.json, which names module, licence and
file. `python -m tests.deploy.tools` installs them next to this Python, and prints what is missing and so not
checked.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["CRDS", "KUSTOMIZE"]

HERE = Path(__file__).parent
CRDS = Path(sys.prefix) / "crds"
"""One YAML file per row of crds.json, and other useful files of the module."""
KUSTOMIZE = Path(sys.prefix) / "bin" / "kustomize"
PACKAGE = "sigs.k8s.io/kustomize/kustomize/v5"
WORDS = {"istio.io/api": ("annotation/annotations.yaml", "label/labels.yaml")}
"""Lists of the annotations and labels that a module's owner knows."""


def build_kustomize() -> None:
    if not _is_current(KUSTOMIZE, HERE / "kustomize" / "go.sum"):
        print("Building kustomize into .venv-deploy (once; about a minute) ...", flush=True)
        subprocess.run(["go", "build", "-o", str(KUSTOMIZE), PACKAGE], cwd=HERE / "kustomize", check=True)


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
    command = ["go", "mod", "download", "-json", f"{row['module']}@{row['version']}"]
    got: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=HERE).stdout)
    if got["Sum"] != row["sum"]:
        sys.exit(f"{row['module']}: expected the sum {row['sum']}, found {got['Sum']}")
    return Path(got["Dir"])


def _is_current(target: Path, source: Path) -> bool:
    return target.exists() and target.stat().st_mtime >= source.stat().st_mtime


def main() -> None:
    unchecked = {
        build_kustomize: "that kustomize and Helm build the same objects",
        fetch_crds: "objects of Istio and of Prometheus Operator against their schemas",
    }
    for make, what in unchecked.items():
        try:
            make()
        except FileNotFoundError:
            print(f"NOT CHECKED: {what}: there is no go on this machine")
        except subprocess.CalledProcessError as error:
            output = (error.stderr or error.stdout or b"").decode(errors="replace").strip()
            print(f"NOT CHECKED: {what}: `{' '.join(error.cmd[:3])}` failed: {output or 'see above'}")


if __name__ == "__main__":
    main()
