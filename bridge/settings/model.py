"""Every setting, its unit, bounds and default, and the only reader of the environment.

From low to high precedence: a TOML file, the environment (`OLLM_BRIDGE_` and the name, nested by `__`), the command
line. An unknown name is an error, not a shrug: a misspelt limit is no limit. The tree is frozen; a component gets its
slice.
"""

import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

__all__ = [
    "Loaded",
    "LogSettings",
    "Settings",
    "SettingsError",
    "TlsSettings",
    "TracingSettings",
    "UpstreamSettings",
    "client_key",
    "is_loopback",
    "load",
    "setting_names",
    "split_address",
]

_HIDDEN: Final = "set, not shown"
ENV_PREFIX: Final = "OLLM_BRIDGE_"
MIB: Final = 1024 * 1024


class SettingsError(Exception):
    """Settings that can't be used. The text has a line each, with the name, what was found and what was expected."""


def split_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`, or `[HOST]:PORT` for IPv6. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError("expected HOST:PORT, with a port of 0 to 65535 (IPv6: [HOST]:PORT)")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is of this machine alone, by its name or number."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _address(address: str) -> str:
    split_address(address)
    return address


def _base_url(url: str) -> str:
    if url.startswith("unix:/"):
        return url
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected a URL such as https://gateway.example")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("expected a URL without user, query or fragment")
    path = parts.path.rstrip("/")
    if path.endswith(("/v1", "/chat/completions")):
        raise ValueError("expected the gateway's root: the bridge adds /v1/chat/completions itself")
    return url.rstrip("/")


def _listen_address(address: str) -> str:
    return address if address.startswith("unix:") and len(address) > len("unix:") else _address(address)


def _admin_address(address: str) -> str:
    return address and _address(address)


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise ValueError("expected a URL such as http://127.0.0.1:4317, without user")
    return url


Seconds = Annotated[float, Field(gt=0, le=86_400)]
Address = Annotated[str, AfterValidator(_address)]


class _Slice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UpstreamSettings(_Slice):
    """The gateway."""

    engine: Literal["native", "httpx"] = Field(
        "native", description="The HTTP client: native, or httpx for HTTP/2 and SOCKS, at several times the CPU."
    )
    base_url: Annotated[str, AfterValidator(_base_url)] = Field(
        "https://api.gateway.orgn.com",
        description="The gateway's root, without /v1; or unix:/PATH, a Unix socket on which it speaks plain HTTP.",
    )
    api_key: SecretStr | None = Field(
        None, description="The bridge's own key. With one, callers' authorization is not forwarded."
    )
    api_key_file: Path | None = Field(None, description="A file with the bridge's own key, in place of api_key.")
    ca_file: Path | None = Field(
        None,
        description="PEM file of the authorities that the gateway's certificate is checked with. Unset: the system's.",
    )
    client_cert_file: Path | None = Field(
        None,
        description="PEM file of the certificate, with its chain, that the bridge shows to the gateway. It and its key "
        "are read again when they change; open connections go on.",
    )
    client_key_file: Path | None = Field(None, description="PEM file of that certificate's key, without a password.")
    plaintext: bool = Field(
        default=False, description="Whether the gateway may be reached by http:// at an address other than loopback."
    )
    proxy: str | None = Field(
        None, description="URL of an HTTP proxy. Proxy variables of the environment are not read.", repr=False
    )
    connect_timeout_s: Seconds = Field(5.0, description="Longest wait for a connection: DNS, TCP and TLS together.")
    keepalive_s: float = Field(
        15.0,
        ge=0,
        le=3600,
        description="How long an unused connection is kept: less than the gateway keeps it. 0: a connection a call.",
    )
    idle_timeout_s: Seconds = Field(
        90.0, description="Longest silence on an open response. Keep-alive comments are no silence."
    )
    first_chunk_timeout_s: Seconds | None = Field(
        None, description="Longest wait for a stream's first chunk. Unset: only the call's own time bounds it."
    )
    require_finish_reason: bool = Field(
        default=True, description="Whether a stream needs a finish_reason for each choice; false lets [DONE] alone do."
    )
    head_bytes_max: int = Field(
        64 * 1024, ge=1024, le=MIB, description="Largest head of a response: status line and header fields."
    )
    response_bytes_max: int = Field(64 * MIB, ge=1024, le=1024 * MIB, description="Largest body of a unary response.")
    event_bytes_max: int = Field(16 * MIB, ge=1024, le=256 * MIB, description="Largest event of a stream.")
    forward_metadata: tuple[str, ...] = Field(
        (), description="Further metadata keys to send as headers, beside authorization, traceparent and the like."
    )
    return_headers: tuple[str, ...] = Field(
        (),
        description="Further response headers to give back, beside x-request-id, x-ratelimit-* and the like.",
    )

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("expected api_key or api_key_file, not both")
        return self

    @model_validator(mode="after")
    def _one_client_certificate(self) -> Self:
        if (self.client_cert_file is None) != (self.client_key_file is None):
            raise ValueError("expected client_cert_file and client_key_file together")
        return self

    @model_validator(mode="after")
    def _no_proxy_to_a_socket(self) -> Self:
        if self.proxy is not None and self.socket_path is not None:
            raise ValueError("expected no proxy beside a base_url of unix:/PATH")
        return self

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        url = urlsplit(self.base_url)
        if url.scheme == "http" and not self.plaintext and not is_loopback(url.hostname or ""):
            raise ValueError("expected an https:// base_url, one at a loopback address, or plaintext = true")
        return self

    @property
    def socket_path(self) -> str | None:
        """The path of the Unix socket that base_url names, if it names one."""
        return self.base_url.removeprefix("unix:") if self.base_url.startswith("unix:/") else None


class TlsSettings(_Slice):
    """TLS of the call port. The files are read again when they change; calls go on."""

    cert_file: Path | None = Field(None, description="PEM file of the server's certificate and its chain.")
    key_file: Path | None = Field(
        None, description="PEM file of the server's key; no one but its owner and group may read it."
    )
    client_ca_file: Path | None = Field(
        None, description="PEM file of the authorities of callers' certificates. With it, callers must show one (mTLS)."
    )
    allowed_identities: tuple[str, ...] = Field(
        (),
        description="SPIFFE ids or subject alternative names that may call; empty: whoever shows a good certificate.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("expected cert_file and key_file together")
        if self.client_ca_file is not None and self.cert_file is None:
            raise ValueError("expected cert_file and key_file beside client_ca_file")
        if self.allowed_identities and self.client_ca_file is None:
            raise ValueError("expected client_ca_file beside allowed_identities")
        return self


class ConnectionSettings(_Slice):
    """Callers' connections."""

    connections_max: int = Field(
        10_000, ge=1, le=1_000_000, description="Connections to the call port; more are closed."
    )
    streams_max: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Calls at once on one connection; more wait at the caller, or end as UNAVAILABLE, unheard.",
    )
    age_s: Seconds | None = Field(
        None, description="Age, give or take a tenth, at which a connection is to be left: this spreads clients anew."
    )
    age_grace_s: Seconds = Field(
        600.0,
        description="How long calls on a connection past its age may go on. Give the longest call its time: grpc ends "
        "later ones as UNAVAILABLE, though they may have run.",
    )
    idle_s: Seconds | None = Field(None, description="How long a connection may have no call.")


class HealthSettings(_Slice):
    """When the bridge says that it is not serving, beside its start and its end."""

    upstream_period_s: Seconds | None = Field(
        None,
        description="How often a connection to the upstream is tried. Unset: never, health tells of the bridge alone.",
    )
    upstream_failures: int = Field(
        3,
        ge=1,
        le=1000,
        description="Failed tries in a row after which the bridge is NOT_SERVING; one good try ends that.",
    )


class TagSettings(_Slice):
    """Tags that the bridge adds to a call's `ollm::tags`, for keys that the caller has not set."""

    fixed: dict[str, str] = Field(default_factory=dict, description="Tags of every call.")
    metadata: dict[str, str] = Field(
        default_factory=dict, description="Tag -> key of the metadata whose value it takes."
    )
    identity: str | None = Field(
        None, min_length=1, description="Tag that takes the caller's identity: SPIFFE id, subject name or token's name."
    )


class LogSettings(_Slice):
    """The log, on standard error."""

    format: Literal["auto", "json", "console"] = Field(
        "auto", description="json: a JSON object a line. auto: console on a terminal, else json."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level written.")


class TracingSettings(_Slice):
    """Traces, sent by OTLP over gRPC. They need the package's extra `tracing`."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        None, description="Where traces are sent, such as http://127.0.0.1:4317. Unset: none are made."
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of calls traced where the caller's trace context does not say."
    )


class Settings(BaseSettings):
    """All of the bridge's settings."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", allow_inf_nan=False
    )

    listen: Annotated[str, AfterValidator(_listen_address)] = Field(
        "127.0.0.1:50051", description="Where gRPC calls are taken: HOST:PORT, port 0 for any free one, or unix:PATH."
    )
    admin_listen: Annotated[str, AfterValidator(_admin_address)] = Field(
        "127.0.0.1:9464",
        description="Where metrics, health and the status page are shown, without TLS: HOST:PORT; empty: nowhere.",
    )
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        1, description="Processes that share the port, or auto: one for each core. They need Linux, and a HOST:PORT."
    )
    insecure: bool = Field(
        default=False, description="Whether calls may be taken without TLS at an address other than loopback."
    )
    call_timeout_s: Seconds = Field(600.0, description="Longest call where the caller gave no deadline.")
    drain_delay_s: float = Field(
        0.0, ge=0, le=3600, description="How long calls are still taken after SIGTERM, while balancers look away."
    )
    drain_grace_s: float = Field(30.0, ge=0, le=86_400, description="How long calls in flight may then go on.")
    request_bytes_max: int = Field(16 * MIB, ge=1024, le=256 * MIB, description="Largest request message.")
    calls_max: int = Field(1000, ge=1, le=100_000, description="Calls in flight; more get OVERLOADED at once.")
    calls_per_caller_max: int | None = Field(
        None, ge=1, le=100_000, description="Calls in flight of one caller, told by identity, else key, else address."
    )
    queue_max: int = Field(
        0, ge=0, le=100_000, description="Calls beyond calls_max that wait for their turn, instead of OVERLOADED."
    )
    tokens_file: Path | None = Field(
        None,
        description="A file of `NAME TOKEN` lines: callers must send one of the tokens. Needs the bridge's own key.",
    )
    upstream: UpstreamSettings = Field(default_factory=UpstreamSettings, description="The gateway.")
    tls: TlsSettings = Field(default_factory=TlsSettings, description="TLS of the call port.")
    connections: ConnectionSettings = Field(default_factory=ConnectionSettings, description="Callers' connections.")
    health: HealthSettings = Field(default_factory=HealthSettings, description="Health.")
    tags: TagSettings = Field(default_factory=TagSettings, description="Spend attribution.")
    log: LogSettings = Field(default_factory=LogSettings, description="The log.")
    tracing: TracingSettings = Field(default_factory=TracingSettings, description="Traces.")

    @classmethod
    def settings_customise_sources(cls, *_sources: Any, **named: Any) -> tuple[Any, ...]:
        """Take the values given: `load` has merged the sources, so that it knows where each came from."""
        return (named["init_settings"],)


class Loaded(BaseModel):
    """The settings, and for each name that some source gave, which one: `file`, `environment` or `flag`."""

    model_config = ConfigDict(frozen=True)

    settings: Settings
    origins: Mapping[str, str]

    def shown(self) -> list["Shown"]:
        """Give each setting as a person may see it: of a secret, only that there is one."""
        return [Shown(name, value, self.origins.get(name, "default")) for name, value in _flat(self.settings, "")]


class Shown(NamedTuple):
    """A setting's name, its value as JSON or a word in place of it, and where it is from."""

    name: str
    value: str
    origin: str


def _flat(model: BaseModel, prefix: str) -> list[tuple[str, str]]:
    found = []
    plain = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found += _flat(value, f"{prefix}{name}.")
        elif value is not None and (isinstance(value, SecretStr) or not field.repr):
            found.append((prefix + name, _HIDDEN))
        else:
            found.append((prefix + name, "unset" if value is None else json.dumps(plain[name], ensure_ascii=False)))
    return found


def load(
    *,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """Merge and check all sources. `flags` is a tree as the settings are. Raises SettingsError, naming every fault."""
    sources = {
        "file": _read_file(config) if config else {},
        "environment": _read_environment(environ),
        "flag": dict(flags or {}),
    }
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, tree in sources.items():
        _merge(merged, tree)
        origins.update(dict.fromkeys(_names(tree), origin))
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        lines = [_fault(each, origins) for each in error.errors(include_url=False)]
        raise SettingsError("\n".join(lines)) from None
    return Loaded(settings=settings, origins=origins)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: expected a readable TOML file, found: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: expected TOML, found: {error}") from None


def client_key() -> str | None:
    """Give the key that the command line's own client sends, from `OLLM_API_KEY`; None where there is none."""
    return os.environ.get("OLLM_API_KEY") or None


class _Environment(EnvSettingsSource):
    """pydantic's reader, of the mapping that it is given."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = {name.lower(): value for name, value in environ.items()}
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._environ


_SERVICE_LINK: Final = re.compile(
    r"OLLM_BRIDGE_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_[A-Z]+(_PROTO|_PORT|_ADDR)?)?)"
)
"""What Kubernetes puts into each container of a namespace that has a Service named ollm-bridge, or ollm-bridge-…."""


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    ours = {
        name: value
        for name, value in environ.items()
        if name.upper().startswith(ENV_PREFIX) and not _SERVICE_LINK.fullmatch(name)
    }
    known = {name.replace(".", "__").upper() for name in setting_names()}
    for name in sorted(ours):
        if name.upper().removeprefix(ENV_PREFIX) not in known:
            raise SettingsError(f"{name}: expected the name of a setting, found none of this name")
    try:
        return _Environment(ours)()
    except SourceError as error:
        raise SettingsError(f"{error}: expected JSON for a list, such as '[\"x-team-id\"]'") from None


def setting_names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Give every setting's dotted name."""
    names = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            own = into.setdefault(name, {})
            if isinstance(own, dict):
                _merge(own, value)
                continue
        into[name] = value


def _names(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name, value in tree.items():
        names += _names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]
    return names


_SECRETS: Final = frozenset({"upstream.api_key", "upstream.proxy"})
_USERINFO: Final = re.compile(r"//[^/\s]*@")


def _fault(error: Any, origins: Mapping[str, str]) -> str:
    name = ".".join(str(part) for part in error["loc"] if not str(part).startswith("function-"))
    known = name in setting_names()
    if error["type"] == "extra_forbidden":
        return f"{name}: expected the name of a setting, found none of this name"
    if name in _SECRETS:
        found = "a secret"
    elif known or name.rpartition(".")[0] in setting_names():  # a setting, or an item of one that is a list
        found = _USERINFO.sub("//[redacted]@", repr(error["input"]))
    elif isinstance(error["input"], Mapping):  # a rule about several settings
        found = _given(error["input"], f"{name}." if name else "")
    else:
        found = "no table"  # not shown: a key may be in it
    expected = error["msg"].removeprefix("Value error, expected ").removeprefix("Input should be ")
    where = f" (from the {origins[name]})" if known and name in origins else ""
    return f"{name or 'settings'}: expected {expected}, found {found}{where}"


def _given(table: Mapping[str, Any], prefix: str) -> str:
    """Say what a table sets; of a secret, and of what is no setting, not the value."""
    shown = []
    for name, value in table.items():
        hidden = prefix + name in _SECRETS or prefix + name not in setting_names()
        shown.append(f"{name} = {_HIDDEN if hidden else _USERINFO.sub('//[redacted]@', repr(value))}")
    return ", ".join(shown) or "none"
