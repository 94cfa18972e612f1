"""Every setting, with its unit, bounds and default; the only reader of the environment."""

from bridge.settings.addresses import is_loopback, split_address
from bridge.settings.load import Loaded, SettingsError, client_key, load
from bridge.settings.model import (
    ENV_PREFIX,
    ConnectionSettings,
    HealthSettings,
    LogSettings,
    Settings,
    TagSettings,
    TlsSettings,
    TracingSettings,
    UpstreamSettings,
    setting_names,
)

__all__ = [
    "ENV_PREFIX",
    "ConnectionSettings",
    "HealthSettings",
    "Loaded",
    "LogSettings",
    "Settings",
    "SettingsError",
    "TagSettings",
    "TlsSettings",
    "TracingSettings",
    "UpstreamSettings",
    "client_key",
    "is_loopback",
    "load",
    "setting_names",
    "split_address",
]
