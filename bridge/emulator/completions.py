"""What stands between the body of a chat completion and its answer: the key, the tags, the name, the cache."""

import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from bridge.emulator.requests import FIELDS
from bridge.emulator.steps import JsonObject, RefusalError

__all__ = ["Cache", "authenticate", "collect_tags", "select_model"]

FUNCTIONS: Mapping[str, tuple[str, ...]] = {"hello": ("v1", "v2")}
SCENARIO_VARIANTS = ("v1", "v2")
"""Of a function that is named as a scenario."""
CACHE_ENTRIES_MAX = 1_000

_FUNCTION_PREFIX, _MODEL_PREFIX, _SCENARIO_PREFIX = "ollm::function_name::", "ollm::model_name::", "scenario::"
_UNCACHED = ("stream", "stream_options", *(key for key in FIELDS if key.startswith("ollm::")))
_DRYRUN_MODES = {"on": "read_only", "write_only": "off"}


def authenticate(headers: Mapping[str, str], api_key: str | None) -> None:
    """Refuse a bad key as the dev gateway does; without a key to compare, take all, as the prod gateway does."""
    if api_key is None:
        return
    header = headers.get("authorization")
    if header is None:
        raise RefusalError(401, "Authorization header is required")
    if not header.startswith("Bearer "):
        raise RefusalError(401, "Authorization header must start with 'Bearer '")
    if not hmac.compare_digest(header.removeprefix("Bearer ").encode(), api_key.encode()):
        raise RefusalError(401, "the API key does not exist", code="invalid_api_key")


def collect_tags(body: JsonObject, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the tags as the spend log has them."""
    tags = dict(body.get("ollm::tags") or {})
    if tags.get("source") == "playground":
        del tags["source"]
        tags["playground"] = "true"
    return tags or ({"user_agent": headers["user-agent"]} if "user-agent" in headers else {})


def select_model(body: JsonObject, models: Sequence[str]) -> tuple[str, str]:
    """Return the model as the answer names it, and the scenario that its name asks for, or ""."""
    selector, variant = body["model"], body.get("ollm::variant_name")
    name = selector.removeprefix(_FUNCTION_PREFIX).removeprefix(_MODEL_PREFIX)
    scenario = name.removeprefix(_SCENARIO_PREFIX) if name.startswith(_SCENARIO_PREFIX) else ""
    if not name:
        raise RefusalError(400, "model: expected a name", param="model")
    if selector.startswith(_FUNCTION_PREFIX):
        return f"{selector}::variant_name::{_select_variant(name, variant, is_scenario=bool(scenario))}", scenario
    if variant is not None:
        raise RefusalError(400, "ollm::variant_name: expected a function as the model", param="ollm::variant_name")
    if not scenario and name not in models:
        raise RefusalError(404, f"Unknown model: {name}", code="model_not_found", param="model")
    return f"{_MODEL_PREFIX}{name}", scenario


def _select_variant(name: str, variant: str | None, *, is_scenario: bool) -> str:
    variants = SCENARIO_VARIANTS if is_scenario else FUNCTIONS.get(name)
    if variants is None:
        raise RefusalError(404, f"Unknown function: {name}", code="function_not_found", param="model")
    if variant is not None and variant not in variants:
        message = f"Unknown variant: {variant}"
        raise RefusalError(404, message, code="variant_not_found", param="ollm::variant_name")
    return variant or variants[0]


class Cache:
    """Which requests have been answered, and when; the answers are the same anyway."""

    def __init__(self, *, entries_max: int = CACHE_ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._written_at: OrderedDict[str, float] = OrderedDict()

    def look_up(self, body: JsonObject) -> bool:
        """Return whether the answer comes from the cache; it is put there if the mode says so."""
        options = body.get("ollm::cache_options") or {}
        mode = options.get("enabled", "off")
        if body.get("ollm::dryrun"):
            mode = _DRYRUN_MODES.get(mode, mode)
        if mode == "off":
            return False
        key = json.dumps({name: value for name, value in body.items() if name not in _UNCACHED}, sort_keys=True)
        now, age_s = time.monotonic(), options.get("max_age_s")
        written_at = self._written_at.get(key)
        is_fresh = written_at is not None and (age_s is None or now - written_at <= age_s)
        if is_fresh and mode != "write_only":
            self._written_at.move_to_end(key)
            return True
        if mode != "read_only":
            self._written_at[key] = now
            while len(self._written_at) > self._entries_max:
                self._written_at.popitem(last=False)
        return False
