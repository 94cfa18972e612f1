"""Every setting, with its unit, bounds and default; the only reader of the environment."""

from bridge.settings.model import (
    ENV_PREFIX,
    ConnectionSettings,
    HealthSettings,
    Loaded,
    LogSettings,
    Settings,
    SettingsError,
    TagSettings,
    TlsSettings,
    TracingSettings,
    UpstreamSettings,
    client_key,
    is_loopback,
    load,
    setting_names,
    split_address,
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
