"""The bridge's own key for the gateway: from the settings, or from a file that is reloaded."""

from collections.abc import Callable

from bridge.core.errors import BridgeError, Code
from bridge.reload import ExpiredFileError, Reloaded
from bridge.settings import UpstreamSettings, check_key
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["make_key_reader"]

_SETTING = "upstream.api_key_file"


def make_key_reader(settings: UpstreamSettings, *, grace_s: float | None = None) -> Callable[[], str] | None:
    """Return a function that returns the current key, or None if none is configured. Raises SettingsError.

    The function raises BridgeError if the key's file could not be used for `grace_s`.
    """
    if settings.api_key is not None:
        key = check_key(settings.api_key.get_secret_value(), "upstream.api_key")
        return lambda: key
    if settings.api_key_file is None:
        return None
    file = Reloaded(
        {_SETTING: settings.api_key_file},
        lambda content: check_key(content.decode("utf-8", "replace").strip(), _SETTING),
        secret={_SETTING},
        lines={_SETTING},
        grace_s=grace_s,
    )

    def read_key() -> str:
        try:
            return file.value
        except ExpiredFileError as error:
            message = f"the bridge has no key of its own: {error}"
            raise BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_CREDENTIALS_REJECTED, message) from error

    return read_key
