"""What an address that takes calls must have, unless it is of this machine alone: TLS, and callers who are known.

Web pages reach this machine too, by the browsers that run on it: so the pages of all origins are not let in to the
bridge's own key either.
"""

from typing import Final, Literal

import structlog

from bridge.settings import UNIX, Settings, SettingsError, is_loopback, split_address

__all__ = ["check_exposure"]

_ANY_ORIGIN: Final = "*"
_PORTS: Final = {"listen": "the call port", "web_listen": "the web port"}
_LOG: Final = structlog.get_logger("ollm_bridge")


def check_exposure(settings: Settings, name: Literal["listen", "web_listen"]) -> None:
    """Check the address in a setting, and warn of what is allowed but open. Raises SettingsError."""
    address: str = getattr(settings, name)
    is_near = address.startswith(UNIX) or is_loopback(split_address(address)[0])
    if not is_near and settings.tls.cert_file is None:
        if not settings.insecure:
            expected = "a loopback address, TLS (tls.cert_file) or insecure = true"
            raise SettingsError(f"{name}: expected {expected}, found {address!r} without TLS")
        _LOG.warning("serving without TLS at an address other than loopback: insecure is true", listen=address)
    if not _has_key_for_strangers(settings):
        return
    if not is_near:
        if not settings.open:
            expected = "a loopback address, tokens_file, tls.client_ca_file, mesh.identity_header or open = true"
            raise SettingsError(f"{name}: expected {expected} beside the bridge's own key, found {address!r}")
        message = f"everybody who reaches {_PORTS[name]} may spend on the bridge's own key: open is true"
        _LOG.warning(message, listen=address)
    elif name == "web_listen" and _ANY_ORIGIN in settings.web_allowed_origins and not settings.open:
        expected = "origins, or tokens_file or open = true beside the bridge's own key"
        reason = "any web site that somebody here visits could spend on the key"
        raise SettingsError(f"web_allowed_origins: expected {expected}, found '*': {reason}")


def _has_key_for_strangers(settings: Settings) -> bool:
    """Whether the bridge has a key of its own, and does not know who calls."""
    has_own_key = settings.upstream.api_key is not None or settings.upstream.api_key_file is not None
    sources = (settings.tokens_file, settings.tls.client_ca_file, settings.mesh.identity_header)
    return has_own_key and all(source is None for source in sources)
