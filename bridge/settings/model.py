"""Every setting: its unit, bounds, default and help. It leaves where values come from to load.py.

The tree is frozen; a component gets its section. `SecretStr` or `repr=False` marks a secret, which is never shown.
"""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from bridge.settings.addresses import check_listen_address, check_optional_address, check_origin
from bridge.settings.identity import MeshSettings, TagSettings, TlsSettings
from bridge.settings.section import MIB, Seconds, Section
from bridge.settings.upstream import UpstreamSettings

__all__ = [
    "ConnectionSettings",
    "HealthSettings",
    "LogSettings",
    "MeshSettings",
    "ServerSettings",
    "Settings",
    "TagSettings",
    "TlsSettings",
    "TracingSettings",
    "UpstreamSettings",
]


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise ValueError("expected a URL such as http://127.0.0.1:4317, without user")
    return url


class ConnectionSettings(Section):
    """Callers' connections."""

    connections_max: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Open connections to the call port, and to the web port. Further ones are closed at once.",
    )
    streams_max: int = Field(
        100,
        ge=1,
        le=100_000,
        description="Concurrent calls on one connection. Further calls wait in the client; those of a client that "
        "does not keep to the limit fail with UNAVAILABLE.",
    )
    age_s: Seconds | None = Field(
        None, description="Close connections after about this long (±10 %), so that clients rebalance. Unset: never."
    )
    age_grace_s: Seconds = Field(
        600.0,
        description="How long calls may go on after their connection has reached age_s. Set it to the longest call: "
        "later, grpc ends calls with UNAVAILABLE although they may have run.",
    )
    idle_s: float = Field(
        300.0, ge=0, le=86_400, description="Close connections that have had no call for this long. 0: never."
    )
    ping_s: float = Field(
        60.0, ge=0, le=86_400, description="Ping callers that have sent nothing for this long. 0: never."
    )
    ping_timeout_s: Seconds = Field(
        20.0, description="Close a connection whose caller does not answer a ping within this time."
    )
    encodings: tuple[Literal["gzip", "deflate"], ...] = Field(
        ("gzip", "deflate"), description="Compressions of messages to accept, besides none."
    )
    settings_timeout_s: Seconds = Field(
        2.0,
        description="How long a caller may take to acknowledge the limits of its connection (HTTP/2's SETTINGS); until "
        "then it is not bound by them.",
    )
    unread_bytes_max: int = Field(
        64 * MIB,
        ge=MIB,
        le=4096 * MIB,
        description="Messages, of all connections, that come before their calls are admitted. A call beyond it fails "
        "with RESOURCE_EXHAUSTED. engine native.",
    )


class ServerSettings(Section):
    """The call port's server."""

    engine: Literal["native", "grpcio"] = Field(
        "native",
        description="The gRPC server: native, the bridge's own, or grpcio. docs/design.md has their differences.",
    )


class HealthSettings(Section):
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


class LogSettings(Section):
    """The log, on standard error."""

    format: Literal["auto", "json", "console"] = Field(
        "auto", description="json: one JSON object per line. auto: console on a terminal, otherwise json."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level to write.")


class TracingSettings(Section):
    """Traces, sent by OTLP over gRPC. They need the package's extra `tracing`."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        None, description="OTLP endpoint to send traces to, such as http://127.0.0.1:4317. Unset: no traces."
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of calls to trace if the caller's trace context does not decide it."
    )
    provider_name: str = Field(
        "ollm",
        min_length=1,
        max_length=100,
        description="What traces call the gateway (gen_ai.provider.name), such as openai or aws.bedrock.",
    )


class Settings(Section):
    """All of the bridge's settings."""

    listen: Annotated[str, AfterValidator(check_listen_address)] = Field(
        "127.0.0.1:50051",
        description="Address of the call port (gRPC): HOST:PORT (port 0: any free one) or unix:PATH.",
    )
    admin_listen: Annotated[str, AfterValidator(check_optional_address)] = Field(
        "127.0.0.1:9464",
        description="Address of the admin port (metrics, health, status page; no TLS): HOST:PORT. Empty: none.",
    )
    web_listen: Annotated[str, AfterValidator(check_optional_address)] = Field(
        "", description="Address of the web port (Connect, gRPC-Web; TLS as the call port): HOST:PORT. Empty: none."
    )
    web_allowed_origins: tuple[Annotated[str, AfterValidator(check_origin)], ...] = Field(
        (), description="Origins of the web pages that may call the web port, such as https://app.example; * for all."
    )
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        1,
        description="Number of processes that share the call port; auto: one per CPU core. More than one needs Linux "
        "and a HOST:PORT.",
    )
    insecure: bool = Field(default=False, description="Whether to serve without TLS at an address other than loopback.")
    open: bool = Field(
        default=False,
        description="Whether everybody at an address other than loopback may spend on the bridge's own key, without "
        "tokens_file, tls.client_ca_file or mesh.identity_header.",
    )
    reflection: bool = Field(
        default=True, description="Whether callers may ask for the schema (gRPC reflection) at the call port."
    )
    call_timeout_s: Seconds = Field(600.0, description="Time limit of a call whose caller set no deadline.")
    call_timeout_max_s: Seconds = Field(3600.0, description="Time limit of a call, whatever deadline its caller set.")
    write_stall_timeout_s: Seconds = Field(
        300.0, description="Longest time that an answer waits for a caller that takes nothing of it."
    )
    heartbeat_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="How long a stream may be without a message before the caller gets an empty one, for proxies that "
        "end what is idle. A caller's metadata `ollmbridge-heartbeat-s` counts first. 0: never.",
    )
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
    request_bytes_max: int = Field(
        4 * MIB,
        ge=1024,
        le=256 * MIB,
        description="Largest request message. Raise it for callers that send large images.",
    )
    receiving_bytes_max: int = Field(
        128 * MIB,
        ge=1024,
        le=4096 * MIB,
        description="Room for the messages that are being received at once, each counted as request_bytes_max. "
        "Further messages wait with their callers.",
    )
    requests_bytes_max: int = Field(
        128 * MIB,
        ge=1024,
        le=65536 * MIB,
        description="Messages of all calls in flight. A call whose message exceeds it fails with OVERLOADED.",
    )
    receive_timeout_s: Seconds = Field(30.0, description="Longest time until a call's message has arrived.")
    calls_max: int = Field(
        1000, ge=1, le=100_000, description="Calls in flight. Further calls fail with OVERLOADED at once."
    )
    calls_per_caller_max: int = Field(
        500,
        ge=1,
        le=100_000,
        description="Calls in flight of one caller, who is known by certificate, mesh or token, else by address. "
        "Behind a proxy, all calls have its address.",
    )
    queue_max: int = Field(
        0, ge=0, le=100_000, description="Calls above calls_max that wait for a slot instead of failing."
    )
    lag_max_ms: float = Field(
        250.0,
        ge=10,
        le=60_000,
        description="How late the event loop may be. While it is later, new calls fail with OVERLOADED before they are "
        "looked at.",
    )
    load_reports: tuple[Literal["trailers", "stream"], ...] = Field(
        (),
        description="How callers' balancers learn how full this process is (ORCA): trailers, with each call; stream, "
        "by xds.service.orca.v3.OpenRcaService. Empty: not at all.",
    )
    tokens_file: Path | None = Field(
        None,
        description="File of `NAME TOKEN` lines. If set, callers must send one of the tokens. Needs upstream.api_key "
        "or upstream.api_key_file. Reloaded when it changes.",
    )
    reload_grace_s: Seconds = Field(
        3600.0,
        description="How long tokens and the key stay in force after their file went missing or bad. An empty tokens "
        "file counts at once.",
    )
    upstream: UpstreamSettings = Field(default_factory=UpstreamSettings, description="The gateway.")
    server: ServerSettings = Field(default_factory=ServerSettings, description="The call port's server.")
    tls: TlsSettings = Field(default_factory=TlsSettings, description="TLS of the call port.")
    mesh: MeshSettings = Field(default_factory=MeshSettings, description="Callers' identity from a mesh.")
    connections: ConnectionSettings = Field(default_factory=ConnectionSettings, description="Callers' connections.")
    health: HealthSettings = Field(default_factory=HealthSettings, description="Health.")
    tags: TagSettings = Field(default_factory=TagSettings, description="Spend attribution.")
    log: LogSettings = Field(default_factory=LogSettings, description="The log.")
    tracing: TracingSettings = Field(default_factory=TracingSettings, description="Traces.")

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if self.mesh.identity_header is not None and self.tls.client_ca_file is not None:
            raise ValueError("expected mesh.identity_header or tls.client_ca_file, not both")
        return self
