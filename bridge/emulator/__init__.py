"""A scripted gateway for demos, tests and benchmarks. It imports nothing of the bridge's other packages."""

from bridge.emulator.gateway import DEFAULT_MODELS, SCENARIOS, Emulator, Exchange, Scenario

__all__ = ["DEFAULT_MODELS", "SCENARIOS", "Emulator", "Exchange", "Scenario"]
