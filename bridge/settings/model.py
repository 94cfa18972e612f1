"""Every setting: its unit, bounds, default and help. It leaves where values come from to load.py.

The tree is frozen; a component gets its section. `SecretStr` or `repr=False` marks a secret, which is never shown.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic.fields import FieldInfo

from bridge.settings.addresses import check_admin_address, check_listen_address, is_loopback

__all__ = [
    "ConnectionSettings",
    "HealthSettings",
    "LogSettings",
    "Settings",
    "TagSettings",
    "TlsSettings",
    "TracingSettings",
    "UpstreamSettings",
    "is_list",
    "is_path",
    "is_secret",
    "is_table",
    "setting_names",
]

MIB: Final = 1024 * 1024


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


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise ValueError("expected a URL such as http://127.0.0.1:4317, without user")
    return url


Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UpstreamSettings(_Section):
    """The gateway."""

    engine: Literal["native", "httpx"] = Field(
        "native", description="The HTTP client: native, or httpx for HTTP/2 and SOCKS, at several times the CPU."
    )
    base_url: Annotated[str, AfterValidator(_base_url)] = Field(
        "https://api.gateway.orgn.com",
        description="The gateway's root URL, without /v1; or unix:/PATH, a Unix socket on which it speaks plain HTTP.",
    )
    api_key: SecretStr | None = Field(
        None, description="The bridge's own API key. If set, callers' authorization metadata is not forwarded."
    )
    api_key_file: Path | None = Field(
        None, description="File that holds the bridge's own API key, instead of api_key. Reloaded when it changes."
    )
    ca_file: Path | None = Field(
        None,
        description="PEM file of the CA certificates that the gateway's certificate is verified with. Unset: the "
        "system's.",
    )
    client_cert_file: Path | None = Field(
        None,
        description="PEM file of the certificate and its chain that the bridge presents to the gateway (mTLS). "
        "Reloaded; open connections stay.",
    )
    client_key_file: Path | None = Field(None, description="PEM file of that certificate's key, without a password.")
    plaintext: bool = Field(
        default=False, description="Whether base_url may be http:// at an address other than loopback."
    )
    proxy: str | None = Field(
        None, description="URL of an HTTP proxy. The environment's proxy variables are ignored.", repr=False
    )
    connect_timeout_s: Seconds = Field(
        5.0, description="Time limit for connecting to the gateway: DNS, TCP and TLS together."
    )
    keepalive_s: float = Field(
        15.0,
        ge=0,
        le=3600,
        description="How long an idle connection to the gateway is kept open. Set it below the gateway's own limit. "
        "0: a new connection for each call.",
    )
    idle_timeout_s: Seconds = Field(
        90.0, description="Longest time without data on an open response. Keep-alive comments count as data."
    )
    first_chunk_timeout_s: Seconds | None = Field(
        None, description="Longest time until a stream's first chunk. Unset: only the call's own time limit applies."
    )
    require_finish_reason: bool = Field(
        default=True,
        description="Whether a stream is complete only with a finish_reason for each choice. false: [DONE] is enough.",
    )
    head_bytes_max: int = Field(
        64 * 1024, ge=1024, le=MIB, description="Largest head of a response: status line and header fields."
    )
    response_bytes_max: int = Field(64 * MIB, ge=1024, le=1024 * MIB, description="Largest body of a unary response.")
    event_bytes_max: int = Field(16 * MIB, ge=1024, le=256 * MIB, description="Largest event of a stream.")
    forward_metadata: tuple[str, ...] = Field(
        (),
        description="Keys of callers' metadata to forward as headers, besides those that always are (authorization, "
        "traceparent, …).",
    )
    return_headers: tuple[str, ...] = Field(
        (),
        description="Response headers to return as metadata, besides those that always are (x-request-id, "
        "x-ratelimit-*, …).",
    )

    @model_validator(mode="after")
    def _check_one_key(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("expected api_key or api_key_file, not both")
        return self

    @model_validator(mode="after")
    def _check_client_certificate(self) -> Self:
        if (self.client_cert_file is None) != (self.client_key_file is None):
            raise ValueError("expected client_cert_file and client_key_file together")
        return self

    @model_validator(mode="after")
    def _check_proxy(self) -> Self:
        if self.proxy is not None and self.socket_path is not None:
            raise ValueError("expected no proxy beside a base_url of unix:/PATH")
        return self

    @model_validator(mode="after")
    def _check_plaintext(self) -> Self:
        url = urlsplit(self.base_url)
        if url.scheme == "http" and not self.plaintext and not is_loopback(url.hostname or ""):
            raise ValueError("expected an https:// base_url, one at a loopback address, or plaintext = true")
        return self

    @property
    def socket_path(self) -> str | None:
        """The path of the Unix socket that base_url names, if it names one."""
        return self.base_url.removeprefix("unix:") if self.base_url.startswith("unix:/") else None


class TlsSettings(_Section):
    """TLS of the call port. The files are reloaded when they change; open connections stay."""

    cert_file: Path | None = Field(
        None, description="PEM file of the server's certificate and its chain. Set it to serve TLS. Reloaded."
    )
    key_file: Path | None = Field(
        None, description="PEM file of the server's private key. Must not be readable by everybody. Reloaded."
    )
    client_ca_file: Path | None = Field(
        None,
        description="PEM file of the CA certificates that callers' certificates are verified with. If set, callers "
        "must present one (mTLS). Reloaded.",
    )
    allowed_identities: tuple[str, ...] = Field(
        (),
        description="SPIFFE IDs or subject alternative names of the callers to accept. Empty: every caller whose "
        "certificate is valid.",
    )

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("expected cert_file and key_file together")
        if self.client_ca_file is not None and self.cert_file is None:
            raise ValueError("expected cert_file and key_file beside client_ca_file")
        if self.allowed_identities and self.client_ca_file is None:
            raise ValueError("expected client_ca_file beside allowed_identities")
        return self


class ConnectionSettings(_Section):
    """Callers' connections."""

    connections_max: int = Field(
        10_000, ge=1, le=1_000_000, description="Open connections to the call port. Further ones are closed at once."
    )
    streams_max: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Concurrent calls on one connection. Further calls queue in the client or fail with UNAVAILABLE.",
    )
    age_s: Seconds | None = Field(
        None, description="Close connections after about this long (±10 %), so that clients rebalance. Unset: never."
    )
    age_grace_s: Seconds = Field(
        600.0,
        description="How long calls may go on after their connection has reached age_s. Set it to the longest call: "
        "later, grpc ends calls with UNAVAILABLE although they may have run.",
    )
    idle_s: Seconds | None = Field(
        None, description="Close connections that have had no call for this long. Unset: never."
    )


class HealthSettings(_Section):
    """When the bridge reports NOT_SERVING, besides its start and shutdown."""

    upstream_period_s: Seconds | None = Field(
        None,
        description="How often to try a connection to the gateway. Unset: never; health then covers the bridge alone.",
    )
    upstream_failures: int = Field(
        3,
        ge=1,
        le=1000,
        description="Failed tries in a row after which the bridge reports NOT_SERVING. One success ends that.",
    )


class TagSettings(_Section):
    """Tags that the bridge adds to a call's `ollm::tags`, unless the caller has set the same key."""

    fixed: dict[str, str] = Field(default_factory=dict, description="Tags to add to every call.")
    metadata: dict[str, str] = Field(
        default_factory=dict, description="Tags to copy from metadata, as tag = metadata key."
    )
    identity: str | None = Field(
        None,
        min_length=1,
        description="Tag to set to the caller's identity: SPIFFE ID, subject name, or the name of its token.",
    )


class LogSettings(_Section):
    """The log, on standard error."""

    format: Literal["auto", "json", "console"] = Field(
        "auto", description="json: one JSON object per line. auto: console on a terminal, otherwise json."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level to write.")


class TracingSettings(_Section):
    """Traces, sent by OTLP over gRPC. They need the package's extra `tracing`."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        None, description="OTLP endpoint to send traces to, such as http://127.0.0.1:4317. Unset: no traces."
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of calls to trace if the caller's trace context does not decide it."
    )


class Settings(_Section):
    """All of the bridge's settings."""

    listen: Annotated[str, AfterValidator(check_listen_address)] = Field(
        "127.0.0.1:50051",
        description="Address of the call port (gRPC): HOST:PORT (port 0: any free one) or unix:PATH.",
    )
    admin_listen: Annotated[str, AfterValidator(check_admin_address)] = Field(
        "127.0.0.1:9464",
        description="Address of the admin port (metrics, health, status page; no TLS): HOST:PORT. Empty: none.",
    )
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        1,
        description="Number of processes that share the call port; auto: one per CPU core. More than one needs Linux "
        "and a HOST:PORT.",
    )
    insecure: bool = Field(default=False, description="Whether to serve without TLS at an address other than loopback.")
    call_timeout_s: Seconds = Field(600.0, description="Time limit of a call whose caller set no deadline.")
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="How long new calls are still accepted after SIGTERM, so that load balancers can take the bridge "
        "out.",
    )
    drain_grace_s: float = Field(
        30.0, ge=0, le=86_400, description="How long calls in flight may go on after drain_delay_s."
    )
    request_bytes_max: int = Field(16 * MIB, ge=1024, le=256 * MIB, description="Largest request message.")
    calls_max: int = Field(
        1000, ge=1, le=100_000, description="Calls in flight. Further calls fail with OVERLOADED at once."
    )
    calls_per_caller_max: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Calls in flight of one caller, who is known by identity, else by API key, else by address. "
        "Unset: no limit.",
    )
    queue_max: int = Field(
        0, ge=0, le=100_000, description="Calls above calls_max that wait for a slot instead of failing."
    )
    tokens_file: Path | None = Field(
        None,
        description="File of `NAME TOKEN` lines. If set, callers must send one of the tokens. Needs upstream.api_key "
        "or upstream.api_key_file. Reloaded when it changes.",
    )
    upstream: UpstreamSettings = Field(default_factory=UpstreamSettings, description="The gateway.")
    tls: TlsSettings = Field(default_factory=TlsSettings, description="TLS of the call port.")
    connections: ConnectionSettings = Field(default_factory=ConnectionSettings, description="Callers' connections.")
    health: HealthSettings = Field(default_factory=HealthSettings, description="Health.")
    tags: TagSettings = Field(default_factory=TagSettings, description="Spend attribution.")
    log: LogSettings = Field(default_factory=LogSettings, description="The log.")
    tracing: TracingSettings = Field(default_factory=TracingSettings, description="Traces.")


def setting_names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return every setting's dotted name."""
    names = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def is_list(name: str) -> bool:
    """Whether a setting, by its dotted name, is a list."""
    return get_origin(_find_field(name).annotation) is tuple


def is_table(name: str) -> bool:
    """Whether a setting, by its dotted name, is a table of texts."""
    return get_origin(_find_field(name).annotation) is dict


def is_secret(name: str) -> bool:
    """Whether a setting's value must not be shown, by its dotted name."""
    field = _find_field(name)
    return not field.repr or SecretStr in (field.annotation, *get_args(field.annotation))


def is_path(name: str) -> bool:
    """Whether a setting, by its dotted name, is the path of a file."""
    return Path in get_args(_find_field(name).annotation)


def _find_field(name: str) -> FieldInfo:
    model: Any = Settings
    *sections, key = name.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    field: FieldInfo = model.model_fields[key]
    return field
