"""The door: the settings, their sources, and addresses. Only this package reads the environment."""

from bridge.settings.addresses import is_loopback, split_address
from bridge.settings.describe import show_path
from bridge.settings.load import ENV_PREFIX, Loaded, SettingsError, client_key, load
from bridge.settings.model import (
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
    "show_path",
    "split_address",
]
