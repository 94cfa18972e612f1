"""Tests of bridge/cli/check.py: the settings that it shows, and its verdict on the answer."""

import asyncio
import os

import pytest

from bridge.cli.main import main
from bridge.emulator import Emulator
from tests.conftest import serve_answers


@pytest.fixture(autouse=True)
def _remove_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OLLM_")]:
        monkeypatch.delenv(name)


async def check(*arguments: str) -> int:
    return await asyncio.to_thread(main, ["check", *arguments])


async def test_settings_are_shown_with_their_origins_and_without_secrets(tmp_path, monkeypatch, capsys):
    (config := tmp_path / "bridge.toml").write_text("call_timeout_s = 7\n")
    monkeypatch.setenv("OLLM_BRIDGE_UPSTREAM__API_KEY", "sk-ollm-secret")
    async with Emulator() as emulator:
        code = await check("--config", str(config), "--upstream", emulator.url)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "call_timeout_s = 7.0  (file)\n" in out
    assert "upstream.api_key = set, not shown  (environment)\n" in out
    assert f'upstream.base_url = "{emulator.url}"  (flag)\n' in out
    assert "calls_max = 1000  (default)\n" in out
    assert f"upstream: {emulator.url} refuses an empty request with HTTP 400, as a gateway should\n" in out
    assert "upstream: its message: " in out
    assert "secret" not in out
    assert emulator.exchanges[-1].body == b"{}"


def encode_response(status: int, content_type: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, content_type, len(body))
    return head + body


ANSWERS = {
    "a page": (
        encode_response(404, b"text/html", b"<p>."),
        "HTTP 404, but not as a gateway of this API does: is the URL right?",
    ),
    "an envelope of another route": (
        encode_response(404, b"application/json", b'{"error":{"message":"no such route"}}'),
        "HTTP 404, but not as a gateway of this API does: is the URL right?",
    ),
    "an envelope": (
        encode_response(
            400, b"application/json", b'{"error":{"message":"no \x1b[2Jmodel"}}'.replace(b"\x1b", b"\\u001b")
        ),
        "HTTP 400, as a gateway should\nupstream: its message: no \\x1b[2Jmodel\n",
    ),
}


@pytest.mark.parametrize(("answer", "verdict"), ANSWERS.values(), ids=ANSWERS)
async def test_verdict_follows_from_the_form_of_the_refusal(answer, verdict, capsys):
    async with serve_answers(answer) as upstream:
        code = await check("--upstream", upstream.url)
    out = capsys.readouterr().out
    assert f"upstream: {upstream.url} refuses an empty request with {verdict}" in out
    assert code == (0 if "as a gateway should" in verdict else 1)


async def test_server_that_accepts_an_empty_request_is_not_a_gateway(capsys):
    async with serve_answers(encode_response(200, b"application/json", b'{"choices":[]}')) as upstream:
        assert await check("--upstream", upstream.url) == 1
    assert "accepts an empty request, so it is not a gateway of this API\n" in capsys.readouterr().out


async def test_port_without_a_server_does_not_answer(capsys):
    assert await check("--upstream", "http://127.0.0.1:1") == 1
    assert "upstream: http://127.0.0.1:1 does not answer: UNAVAILABLE UPSTREAM_UNREACHABLE" in capsys.readouterr().out
