"""Tests of bridge/cli/emulate.py."""

import os
import signal
import socket
import threading
from http.client import HTTPConnection

import pytest

from bridge.cli.main import main
from tests.kit.processes import has_ipv6
from tests.kit.waiting import WAIT_S

NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
REQUEST = b'{"model": "near_qwen3_30b", "messages": [{"role": "user", "content": "Hi"}]}'


def test_every_request_until_sigterm_gets_the_scenario():
    statuses = []

    def send_request(address: str) -> None:
        try:
            connection = HTTPConnection(address, timeout=30)
            connection.request("POST", "/v1/chat/completions", REQUEST, {"content-type": "application/json"})
            statuses.append(connection.getresponse().status)
            connection.close()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = ["emulate", "--listen", "127.0.0.1:0", "--scenario", "overloaded"]
    threads = []

    def on_ready(address: str, _about: str) -> None:
        threads.append(threading.Thread(target=send_request, args=(address,)))
        threads[0].start()

    assert main(arguments, on_ready=on_ready) == 0
    threads[0].join(30)
    assert statuses == [503]


def test_address_that_cannot_be_used_is_a_usage_error(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["emulate", "--listen", listen]) == 2
    assert capsys.readouterr().err == f"--listen: cannot listen at {listen!r}: Address already in use\n"


@NEEDS_IPV6
@pytest.mark.parametrize(("host", "callers"), [("[::1]", ["::1"]), ("[::]", ["::1", "127.0.0.1"])])
def test_ipv6_address_is_listened_at(host, callers):
    reached = []

    def on_ready(address: str, _about: str) -> None:
        assert address.startswith(f"{host}:")
        for caller in callers:
            with socket.create_connection((caller, int(address.rpartition(":")[2])), timeout=WAIT_S):
                reached.append(caller)
        os.kill(os.getpid(), signal.SIGTERM)

    assert main(["emulate", "--listen", f"{host}:0"], on_ready=on_ready) == 0
    assert reached == callers
