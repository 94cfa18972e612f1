"""The kustomize base and overlays are generated from the chart, and build to the same objects."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.generate import BASE, COMPONENTS, HERE, OVERLAYS, render_documents, render_files
from tests.kit.processes import run_program
from tests.package.deploy.schemas import is_builtin
from tests.package.deploy.tools import KUSTOMIZE

needs_kustomize = pytest.mark.skipif(not KUSTOMIZE.exists(), reason="kustomize could not be built: see above")


def read(values: dict[str, Any]) -> dict[tuple[str, str], dict]:
    return {key: yaml.safe_load(text) for key, text in render_documents(values).items()}


def build(place: Path) -> dict[tuple[str, str], dict]:
    code, text, errors = run_program(KUSTOMIZE, "build", place)
    assert code == 0, errors
    return {(tree["kind"], tree["metadata"]["name"]): tree for tree in yaml.safe_load_all(text)}


def test_files_are_current():
    existing = {
        str(path.relative_to(HERE)): path.read_text(encoding="utf-8")
        for folder in ("base", "components", "overlays")
        for path in (HERE / folder).rglob("*")
        if path.is_file()
    }
    assert existing == render_files(), "run `make kubernetes`"


@needs_kustomize
@pytest.mark.parametrize(
    ("place", "mesh"), [("base", ""), *((f"overlays/{name}", mesh) for name, mesh in OVERLAYS.items())]
)
def test_kustomize_builds_object_by_object_what_helm_renders(place, mesh):
    assert build(HERE / place) == read(BASE | {"mesh": mesh})


@needs_kustomize
@pytest.mark.parametrize("mesh", OVERLAYS)
def test_components_fit_every_overlay(mesh, tmp_path):
    paths = [HERE / "overlays" / mesh, *(HERE / "components" / name for name in COMPONENTS)]
    overlay, *components = (os.path.relpath(path, tmp_path) for path in paths)
    tree = {"kind": "Kustomization", "resources": [overlay], "components": components}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    values = BASE | {"mesh": OVERLAYS[mesh]}
    for each in COMPONENTS.values():
        values |= each
    assert build(tmp_path) == read(values)


def test_base_needs_nothing_but_kubernetes():
    assert [tree["kind"] for tree in read(BASE).values() if not is_builtin(tree)] == []
