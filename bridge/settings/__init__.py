"""The door: the settings, their sources, and addresses. Only this package reads the environment."""

from bridge.settings.addresses import UNIX, is_loopback, split_address
from bridge.settings.describe import show_path
from bridge.settings.load import ENV_PREFIX, Loaded, SettingsError, allows_color, check_key, client_key, load
from bridge.settings.model import (
    ConnectionSettings,
    HealthSettings,
    LogSettings,
    MeshSettings,
    ServerSettings,
    Settings,
    TagSettings,
    TlsSettings,
    TracingSettings,
    UpstreamSettings,
)
from bridge.settings.modes import find_mode_fault
from bridge.settings.names import setting_names

__all__ = [
    "ENV_PREFIX",
    "UNIX",
    "ConnectionSettings",
    "HealthSettings",
    "Loaded",
    "LogSettings",
    "MeshSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "TagSettings",
    "TlsSettings",
    "TracingSettings",
    "UpstreamSettings",
    "allows_color",
    "check_key",
    "client_key",
    "find_mode_fault",
    "is_loopback",
    "load",
    "setting_names",
    "show_path",
    "split_address",
]
