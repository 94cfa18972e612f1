"""How hypothesis runs here: enough examples to be worth the wait, the same ones each time in CI."""

import os

from hypothesis import settings

settings.register_profile(
    "core", max_examples=100, deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True
)
settings.load_profile("core")
