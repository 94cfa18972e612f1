"""Tests of bridge/process/about.py: what the line of a process that listens says."""

from bridge import __version__
from bridge.process.about import describe_process
from bridge.settings import Settings


def test_line_has_name_version_upstream_and_page():
    settings = Settings(upstream={"base_url": "https://gateway.example/team", "api_key": "sesame"})
    expected = f"ollm-bridge {__version__}, upstream https://gateway.example/team, page http://127.0.0.1:9464/"
    assert describe_process(settings, page="127.0.0.1:9464") == expected


def test_line_has_no_page_if_there_is_none():
    settings = Settings(upstream={"base_url": "unix:/run/gateway.sock"})
    assert describe_process(settings, page="") == f"ollm-bridge {__version__}, upstream unix:/run/gateway.sock"


def test_line_has_the_web_port_if_there_is_one():
    plain = Settings(upstream={"base_url": "unix:/run/gateway.sock"})
    assert describe_process(plain, page="", web="127.0.0.1:8081").endswith(", web http://127.0.0.1:8081/")
    tls = Settings(tls={"cert_file": "a.pem", "key_file": "b.pem"})
    assert describe_process(tls, page="", web="127.0.0.1:8081").endswith(", web https://127.0.0.1:8081/")
