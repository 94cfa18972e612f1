"""Every setting, its unit, bounds and default. The tree is frozen; a component gets its slice."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bridge.settings.addresses import check_admin_address, check_listen_address, is_loopback

__all__ = [
    "ENV_PREFIX",
    "ConnectionSettings",
    "HealthSettings",
    "LogSettings",
    "Settings",
    "TagSettings",
    "TlsSettings",
    "TracingSettings",
    "UpstreamSettings",
    "setting_names",
]

ENV_PREFIX: Final = "OLLM_BRIDGE_"
MIB: Final = 1024 * 1024


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected a URL such as https://gateway.example")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("expected a URL without user, query or fragment")
    path = parts.path.rstrip("/")
    if path.endswith(("/v1", "/chat/completions")):
        raise ValueError("expected the gateway's root: the bridge adds /v1/chat/completions itself")
    return url.rstrip("/")


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise ValueError("expected a URL such as http://127.0.0.1:4317, without user")
    return url


Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Slice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UpstreamSettings(_Slice):
    """The gateway."""

    base_url: Annotated[str, AfterValidator(_base_url)] = Field(
        "https://api.gateway.orgn.com", description="The gateway's root, without /v1."
    )
    api_key: SecretStr | None = Field(
        None, description="The bridge's own key. With one, callers' authorization is not forwarded."
    )
    api_key_file: Path | None = Field(None, description="A file with the bridge's own key, in place of api_key.")
    ca_file: Path | None = Field(
        None,
        description="PEM file of the authorities that the gateway's certificate is checked with. Unset: the system's.",
    )
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
    def _encrypted(self) -> Self:
        url = urlsplit(self.base_url)
        if url.scheme == "http" and not self.plaintext and not is_loopback(url.hostname or ""):
            raise ValueError("expected an https:// base_url, one at a loopback address, or plaintext = true")
        return self


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

    listen: Annotated[str, AfterValidator(check_listen_address)] = Field(
        "127.0.0.1:50051", description="Where gRPC calls are taken: HOST:PORT, port 0 for any free one, or unix:PATH."
    )
    admin_listen: Annotated[str, AfterValidator(check_admin_address)] = Field(
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


def setting_names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Give every setting's dotted name."""
    names = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
