"""Tests of bridge/cli/serve.py. The server itself is tested in tests/e2e."""

import argparse

import pytest

from bridge.cli.defaults import UsageError
from bridge.cli.main import print_address
from bridge.cli.serve import run


def test_settings_that_cannot_be_used_are_a_usage_error():
    options = argparse.Namespace(
        config=None,
        listen="here",
        web_listen=None,
        admin_listen=None,
        upstream=None,
        workers=None,
        on_ready=print_address,
    )
    with pytest.raises(UsageError, match="listen: expected HOST:PORT"):
        run(options)
