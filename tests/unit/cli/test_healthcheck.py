"""Tests of bridge/cli/healthcheck.py: the answer of an admin port, and the exit code."""

import asyncio

import pytest

from bridge.cli.main import main
from tests.kit.upstreams import serve_answers

ANSWERS = {
    "serving": (200, b"SERVING\n", 0, "SERVING\n", ""),
    "not serving": (503, b"NOT_SERVING\n", 1, "NOT_SERVING\n", ""),
    "another server": (404, b"not found", 1, "", "{address}: not the admin port of a bridge: HTTP 404\n"),
    "a server that answers 200 to all": (200, b"hello", 1, "", "{address}: not the admin port of a bridge: HTTP 200\n"),
}


@pytest.mark.parametrize(("status", "body", "code", "out", "err"), ANSWERS.values(), ids=ANSWERS)
async def test_exit_code_follows_from_the_answer_of_the_admin_port(status, body, code, out, err, capsys):
    answer = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)
    async with serve_answers(answer) as admin:
        address = admin.url.removeprefix("http://")
        assert await asyncio.to_thread(main, ["healthcheck", "--address", address]) == code
        assert admin.requests[0].startswith(b"GET /healthz HTTP/1.1\r\n")
    assert capsys.readouterr() == (out, err.format(address=address))


async def test_server_that_does_not_speak_http_is_reported(capsys):
    async with serve_answers(b"\0\0\x06\x04\0\0\0\0\0") as grpc:
        address = grpc.url.removeprefix("http://")
        assert await asyncio.to_thread(main, ["healthcheck", "--address", address]) == 1
    assert capsys.readouterr().err.startswith(f"{address}: cannot reach the admin port: ")


def test_port_without_a_server_is_reported(capsys, closed_address):
    assert main(["healthcheck", "--address", closed_address]) == 1
    assert capsys.readouterr().err.startswith(f"{closed_address}: cannot reach the admin port: ")


def test_proxies_of_the_environment_are_ignored(monkeypatch, capsys, closed_address):
    monkeypatch.setenv("HTTP_PROXY", "nonsense://me:sesame@proxy")
    monkeypatch.setenv("ALL_PROXY", "nonsense://me:sesame@proxy")
    assert main(["healthcheck", "--address", closed_address]) == 1
    assert "sesame" not in capsys.readouterr().err


@pytest.mark.parametrize("address", ["", "nowhere:port", "http://127.0.0.1:1"], ids=repr)
def test_invalid_address_is_reported(address, capsys):
    assert main(["healthcheck", "--address", address]) == 1
    assert capsys.readouterr().err.startswith(f"{address}: cannot reach the admin port: ")
