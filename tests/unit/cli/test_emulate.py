"""Tests of bridge/cli/emulate.py."""

import os
import signal
import threading
from http.client import HTTPConnection

from bridge.cli.main import main

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

    def on_ready(address: str) -> None:
        threads.append(threading.Thread(target=send_request, args=(address,)))
        threads[0].start()

    assert main(arguments, on_ready=on_ready) == 0
    threads[0].join(30)
    assert statuses == [503]
