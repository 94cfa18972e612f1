"""The kustomize base and overlays are generated from the chart, and build to the same objects."""

import subprocess

import pytest
import yaml

from deploy.kubernetes.generate import HERE, OVERLAYS, render_documents, render_files
from tests.deploy.tools import KUSTOMIZE

needs_kustomize = pytest.mark.skipif(not KUSTOMIZE.exists(), reason="kustomize could not be built: see above")


def build(place: str) -> dict[tuple[str, str], dict]:
    text = subprocess.run([KUSTOMIZE, "build", HERE / place], check=True, capture_output=True, text=True).stdout
    return {(tree["kind"], tree["metadata"]["name"]): tree for tree in yaml.safe_load_all(text)}


def test_files_are_current():
    existing = {
        str(path.relative_to(HERE)): path.read_text(encoding="utf-8")
        for folder in ("base", "overlays")
        for path in (HERE / folder).rglob("*")
        if path.is_file()
    }
    assert existing == render_files(), "run `make kubernetes`"


@needs_kustomize
@pytest.mark.parametrize(
    ("place", "mesh"), [("base", ""), *((f"overlays/{name}", mesh) for name, mesh in OVERLAYS.items())]
)
def test_kustomize_builds_object_by_object_what_helm_renders(place, mesh):
    wanted = {key: yaml.safe_load(text) for key, text in render_documents({"mesh": mesh}).items()}
    assert build(place) == wanted
