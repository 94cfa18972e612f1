"""Tests of bridge/cli/defaults.py: what the commands share agrees with the settings and the emulator."""

from bridge.cli.defaults import DEFAULT_ADDRESS, DEFAULT_MODEL
from bridge.emulator import DEFAULT_MODELS
from bridge.settings import Settings


def test_client_calls_where_a_bridge_listens_by_default():
    assert Settings().listen == DEFAULT_ADDRESS


def test_default_model_is_one_that_the_emulator_has():
    assert DEFAULT_MODEL in DEFAULT_MODELS
