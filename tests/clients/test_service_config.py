"""clients/service_config.json: what a stock client does with it, and that every kit has the same policy."""

import json
import re
from pathlib import Path

import pytest

from tests.kit.client import chat, scenario

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "clients" / "service_config.json").read_text(encoding="utf-8")
POLICY = json.loads(TEXT)["methodConfig"][0]["retryPolicy"]
COPIES = [
    "clients/CASES.md",
    "clients/go/kit/kit.go",
    "clients/java/src/main/java/ollmbridge/kit/Kit.java",
    "clients/python/ollmbridge_client/kit.py",
    "clients/typescript/src/kit.ts",
]
"""Files that have the policy in their language: a kit is copied alone."""


def read_policy(source: str) -> dict[str, object]:
    """Return the members of the policy that the source of some language has."""
    found: dict[str, object] = {}
    for name, value in POLICY.items():
        pattern = r"[\[(](.*?)[\])]" if isinstance(value, list) else r'"?([\w.]+)"?'
        match = re.search(rf'"{name}"\s*[:,]\s*(?:List\.of)?{pattern}', source, re.DOTALL)
        if match is not None:
            found[name] = re.findall(r"\w+", match[1]) if isinstance(value, list) else match[1]
    return found


@pytest.mark.parametrize("path", COPIES)
def test_copy_of_the_policy_is_the_same(path):
    found = read_policy((ROOT / path).read_text(encoding="utf-8"))
    for name in ("maxAttempts", "backoffMultiplier"):
        found[name] = float(str(found[name]))
    assert found == POLICY


def test_every_file_with_the_policy_is_compared():
    sources = [path for path in ROOT.glob("clients/**/*.*") if not {".venv", "node_modules", "target"} & {*path.parts}]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if path.suffix in {".go", ".java", ".md", ".py", ".rs", ".ts"}
        and '"maxAttempts"' in path.read_text(encoding="utf-8", errors="replace")
    }
    assert found == {*COPIES}


ENDS = {
    # the first call's scenario, and how often the gateway is asked
    "nothing was generated": ("error?status=503", 4),
    "a rate limit that ends": ("flaky?times=2&status=429&retry_after_ms=20", 3),
    "a wait of more than a minute": ("rate_limited?retry_after=61", 1),
    "a call that may have run": ("close", 1),
    "a request that is wrong": ("error?status=400", 1),
    "a failure of the gateway": ("error?status=500", 1),
}


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(("name", "attempts"), ENDS.values(), ids=ENDS)
async def test_stock_client_retries_what_is_safe(start_bridge, emulator, name, attempts, stream):
    bridge = await start_bridge(channel={"grpc.service_config": TEXT})
    answer = await bridge.ask(scenario(name), stream=stream)
    assert (answer.failure is None) is name.startswith("flaky")
    assert len(emulator.exchanges) == attempts


async def test_policy_is_for_the_bridges_service_alone(start_bridge):
    [method] = json.loads(TEXT)["methodConfig"]
    assert method["name"] == [{"service": "ollmbridge.v1.ChatCompletionService"}]
    bridge = await start_bridge(channel={"grpc.service_config": TEXT})
    assert (await bridge.ask(chat())).failure is None
