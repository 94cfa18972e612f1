"""Tests of bridge/process/loops.py: uvloop where it is installed."""

import sys

import uvloop

from bridge.process.loops import loop_factory


def test_loop_is_uvloops_if_it_is_installed():
    assert loop_factory() is uvloop.new_event_loop


def test_loop_is_asyncios_if_uvloop_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
