"""The alert rules: promtool's own tests, a runbook for each alert, and the chart's PrometheusRule."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.kit.processes import find_program, run_program
from tests.package.deploy.objects import get_container, render

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
TESTS = (FOLDER / "alerts.test.yaml").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PROMTOOL = find_program("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="NOT CHECKED: the alerts: there is no promtool on this machine (Debian: the package prometheus)",
)


@needs_promtool
def test_promtool_accepts_the_rules():
    assert run_program(PROMTOOL, "check", "rules", FOLDER / "alerts.yaml").code == 0


@needs_promtool
def test_alerts_fire_when_they_should_and_not_otherwise():
    code, out, err = run_program(PROMTOOL, "test", "rules", FOLDER / "alerts.test.yaml")
    assert code == 0, out + err


MUTANTS = {
    "a hung gateway is no error": ("|DEADLINE_EXCEEDED", ""),
    "one failed connect pages": ("[5m])) >= 5", "[5m])) > 0"),
    "a fault is no alert": ("BRIDGE_FAULT", "NO_FAULT"),
    "a replica that is down is no alert": ("== 0\n        for: 5m", "== 2\n        for: 5m"),
    "certificates of a day are always late": ("clamp_max(0.2 *", "clamp_max(2 *"),
}


@needs_promtool
@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_wrong_rule_fails_its_tests(old, new, tmp_path):
    text = (FOLDER / "alerts.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "alerts.yaml").write_text(text.replace(old, new), encoding="utf-8")
    shutil.copy(FOLDER / "alerts.test.yaml", tmp_path)
    assert run_program(PROMTOOL, "test", "rules", tmp_path / "alerts.test.yaml").code == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule['alert']} {rule['labels']['severity']}")
def test_each_alert_is_tested_and_has_a_runbook(rule):
    name, severity = rule["alert"], rule["labels"]["severity"]
    assert f'alertname="{name}", severity="{severity}"' in TESTS
    page, _, section = rule["annotations"]["runbook_url"].partition("#")
    assert (page, section) == ("docs/operations.md", name.lower())
    (runbook,) = re.findall(rf"^### {name}\n\n(.*?)\n\n##", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^- \*\*(.*?)\*\*: ", runbook, re.MULTILINE) == ["It means", "Look at", "Do"]


def test_first_look_finds_the_container_and_its_settings():
    container = get_container({})
    (command,) = re.findall(r"^kubectl exec .* check .*$", OPERATIONS, re.MULTILINE)
    assert f" -c {container['name']} -- ollm-bridge check --config {container['args'][2]} " in command
    assert f"-c {container['name']} --prefix" in OPERATIONS


def test_no_runbook_is_without_its_alert():
    sections = re.findall(r"^### (OllmBridge\w+)$", OPERATIONS, re.MULTILINE)
    assert sorted(sections) == sorted({rule["alert"] for rule in RULES})


def test_chart_has_the_same_rules():
    url = "https://docs.example/operations.html"
    wanted = (FOLDER / "alerts.yaml").read_text(encoding="utf-8").replace("docs/operations.md#", f"{url}#")
    rule = render({"prometheusRule": {"enabled": True, "labels": {"release": "p"}, "runbooks": url}})
    found = rule["PrometheusRule", "ollm-bridge"]
    assert found["spec"] == yaml.safe_load(wanted)
    assert found["metadata"]["labels"]["release"] == "p"
    assert ("PrometheusRule", "ollm-bridge") not in render({})
