"""A scripted gateway: the chat-completions API over plain HTTP/1.1, for demos, tests and benchmarks.

A scenario makes steps (`scenarios`, `steps`), a connection plays them (`wire`). It imports nothing of the bridge's
other packages and only h11 beside the standard library, so that no fault that both share can hide one.
"""

from bridge.emulator.exchange import Exchange
from bridge.emulator.gateway import DEFAULT_MODELS, Emulator
from bridge.emulator.scenarios import SCENARIOS, Scenario

__all__ = ["DEFAULT_MODELS", "SCENARIOS", "Emulator", "Exchange", "Scenario"]
