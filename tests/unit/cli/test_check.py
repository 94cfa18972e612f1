"""Tests of bridge/cli/check.py: the settings that it shows, and its verdict on the answer."""

import asyncio
import datetime as dt
import gc
import os
import re

import pytest

from bridge.cli.main import main
from bridge.emulator import Emulator
from tests.kit.certificates import Certificates
from tests.kit.upstreams import serve_answers


@pytest.fixture(autouse=True)
def _remove_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OLLM_")]:
        monkeypatch.delenv(name)


async def check(*arguments: str) -> int:
    return await asyncio.to_thread(main, ["check", *arguments])


async def test_settings_that_are_set_are_shown_with_their_origins_and_without_secrets(tmp_path, monkeypatch, capsys):
    gc.collect()  # files that other tests followed
    (config := tmp_path / "bridge.toml").write_text("call_timeout_s = 7\n")
    monkeypatch.setenv("OLLM_BRIDGE_UPSTREAM__API_KEY", "sk-ollm-secret")
    async with Emulator() as emulator:
        code = await check("--config", str(config), "--upstream", emulator.url)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:3] == [
        "call_timeout_s = 7.0 (file)",
        f'upstream.base_url = "{emulator.url}" (flag)',
        "upstream.api_key = set, not shown (environment)",
    ]
    assert re.fullmatch(r"\d+ more settings have their defaults \(--all shows them\)", lines[3])
    assert lines[4] == "ok: `serve` can start; its ports were not tried (--bind tries them)"
    assert re.match(
        rf"ok: the gateway at {emulator.url} answers in \d+ ms, and refuses an empty request as it", lines[5]
    )
    assert "secret" not in out
    assert emulator.exchanges[-1].body == b"{}"


async def test_all_settings_are_shown_if_asked_for(capsys):
    async with Emulator() as emulator:
        assert await check("--upstream", emulator.url, "--all") == 0
    out = capsys.readouterr().out
    assert "calls_max " in out
    assert out.count("  (default)\n") > 40


async def test_every_fault_is_said_and_the_gateway_is_not_asked(capsys):
    async with Emulator() as emulator:
        code = await check("--upstream", emulator.url, "--listen", "0.0.0.0:1", "--admin-listen", "127.0.0.1:0")
        assert emulator.exchanges == []
    assert code == 2
    out = capsys.readouterr().out
    assert "error: listen: expected a loopback address, TLS" in out
    assert "ok:" not in out


async def test_warnings_of_the_start_are_said(monkeypatch, capsys):
    monkeypatch.setenv("OLLM_BRIDGE_INSECURE", "true")
    async with Emulator() as emulator:
        assert await check("--upstream", emulator.url, "--listen", "0.0.0.0:0") == 0
    warning = "warning: serving without TLS at an address other than loopback: insecure is true: listen = 0.0.0.0:0\n"
    assert capsys.readouterr().out.count(warning) == 1


@pytest.mark.parametrize(("days", "said"), [(-1, "has expired, on "), (40.5, "good until ")])
async def test_ends_of_certificates_are_said(days, said, tmp_path, monkeypatch, capsys):
    gc.collect()  # files that other tests followed
    certificates = Certificates(tmp_path)
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    certificates.write(certificates.authority.issue_cert("localhost", not_after=end))
    for name, path in certificates.settings.items():
        monkeypatch.setenv(f"OLLM_BRIDGE_TLS__{name.upper()}", str(path))
    async with Emulator() as emulator:
        assert await check("--upstream", emulator.url) == 0
    out = capsys.readouterr().out
    assert f"\ntls.cert_file: {said}{end:%Y-%m-%d}" in out
    assert ("\nwarning: a certificate has expired: replace it: setting = tls.cert_file" in out) == (days < 0)


async def test_settings_that_cannot_be_read_are_a_usage_error(tmp_path, capsys):
    assert await check("--config", str(tmp_path / "none.toml")) == 2
    assert capsys.readouterr().err != ""


def encode_response(status: int, content_type: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, content_type, len(body))
    return head + body


def refuse(status: int) -> bytes:
    return encode_response(status, b"application/json", b'{"error":{"message":"its words"}}')


NO_GATEWAY = "is not a gateway of this API: is the URL right? (HTTP 404"
ANSWERS = {
    "an envelope": (refuse(400), 0, 0, "and refuses an empty request as it should (HTTP 400: its words)"),
    "another envelope": (refuse(422), 0, 0, "and refuses an empty request as it should (HTTP 422: its words)"),
    "a page": (encode_response(404, b"text/html", b"<p>."), 1, 1, NO_GATEWAY),
    "an envelope of another route": (refuse(404), 1, 1, NO_GATEWAY),
    "a page of another server": (encode_response(400, b"text/html", b"<p>."), 1, 1, "is the URL right? (HTTP 400"),
    "a key that it does not know": (refuse(401), 0, 3, "(HTTP 401: "),
    "a key that is forbidden": (refuse(403), 0, 3, "(HTTP 403: "),
    "an account without money": (refuse(402), 0, 3, "(HTTP 402: "),
    "a rate limit": (refuse(429), 4, 4, "but it limits the bridge's calls (HTTP 429: its words)"),
    "a fault": (refuse(500), 4, 4, "but it fails (HTTP 500: its words)"),
    "a proxy without it": (encode_response(502, b"text/html", b"<p>."), 4, 4, "but it fails (HTTP 502"),
    "no room": (refuse(503), 4, 4, "but it fails (HTTP 503: its words)"),
}


@pytest.mark.parametrize("with_key", [False, True], ids=["callers' keys", "the bridge's key"])
@pytest.mark.parametrize(("answer", "code", "code_with_key", "verdict"), ANSWERS.values(), ids=ANSWERS)
async def test_verdict_and_exit_code_follow_from_the_answer(
    answer, code, code_with_key, verdict, with_key, monkeypatch, capsys
):
    if with_key:
        monkeypatch.setenv("OLLM_BRIDGE_UPSTREAM__API_KEY", "sk-ollm-secret")
    async with serve_answers(answer) as upstream:
        found = await check("--upstream", upstream.url)
    last = capsys.readouterr().out.splitlines()[-1]
    assert found == (code_with_key if with_key else code)
    assert last.startswith("error: " if found else "ok: ")
    assert verdict in last
    assert ("error: upstream.api_key: " in last and "rejects the key" in last) == (found == 3)


async def test_words_of_the_gateway_cannot_control_the_terminal(capsys):
    body = b'{"error":{"message":"no \x1b[2Jmodel"}}'.replace(b"\x1b", b"\\u001b")
    async with serve_answers(encode_response(400, b"application/json", body)) as upstream:
        assert await check("--upstream", upstream.url) == 0
    assert "(HTTP 400: no \\x1b[2Jmodel)" in capsys.readouterr().out


async def test_server_that_accepts_an_empty_request_is_not_a_gateway(capsys):
    async with serve_answers(encode_response(200, b"application/json", b'{"choices":[]}')) as upstream:
        assert await check("--upstream", upstream.url) == 1
    assert "accepts an empty request, so it is not a gateway of this API\n" in capsys.readouterr().out


async def test_port_without_a_server_does_not_answer(capsys):
    assert await check("--upstream", "http://127.0.0.1:1") == 1
    assert "error: upstream.base_url: http://127.0.0.1:1 does not answer: UNAVAILABLE" in capsys.readouterr().out
