"""Settings of the gateway's side: where it is, how it is reached, how long it may take, and what crosses."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from bridge.settings.addresses import is_loopback
from bridge.settings.section import MIB, Seconds, Section

__all__ = ["UpstreamSettings"]


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


def _proxy(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # its text has a part of the URL, which may be a password
        raise ValueError("expected a URL that can be read") from None
    if not is_host or parts.scheme not in {"http", "https", "socks5", "socks5h"}:
        raise ValueError("expected a URL such as http://proxy.example:3128")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("expected a URL without path, query or fragment")
    return url


class UpstreamSettings(Section):
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
        description="PEM file of the CA certificates that the gateway's certificate is verified with. Reloaded; open "
        "connections stay. Unset: the system's.",
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
    proxy: Annotated[str, AfterValidator(_proxy)] | None = Field(
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
    first_chunk_timeout_s: Seconds = Field(
        300.0,
        description="Longest time without data before a stream's first chunk, the wait for the response included. "
        "Keep-alive comments count as data.",
    )
    idle_timeout_s: Seconds = Field(
        90.0,
        description="Longest time without data on an open response; of a stream, after its first chunk. Keep-alive "
        "comments count as data.",
    )
    stall_timeout_s: Seconds | None = Field(
        None,
        description="Longest time of a stream without text, reasoning or a tool call, whatever comments come. The "
        "first may take first_chunk_timeout_s if that is longer. Unset: no limit.",
    )
    deadline_header: str | None = Field(
        None,
        min_length=1,
        description="Header that tells the gateway how much of the call's time is left, such as "
        "x-envoy-expected-rq-timeout-ms. Unset: none.",
    )
    deadline_header_unit: Literal["ms", "s"] = Field("ms", description="Unit of the time in deadline_header.")
    require_finish_reason: bool = Field(
        default=True,
        description="Whether a stream is complete only with a finish_reason for each choice. false: [DONE] is enough.",
    )
    finish_grace_s: Seconds = Field(
        1.0,
        description="How long a stream whose completion is whole may stay open without [DONE] or its end. Keep-alive "
        "comments do not extend it.",
    )
    stream_usage: Literal["always", "asked"] = Field(
        "always",
        description="Whether the usage of a stream is asked for always, or only if the caller asks. A caller who does "
        "not ask does not see it; metrics and log do.",
    )
    head_bytes_max: int = Field(
        64 * 1024, ge=1024, le=MIB, description="Largest head of a response: status line and header fields."
    )
    head_fields_max: int = Field(1000, ge=16, le=10_000, description="Most header fields of a response.")
    response_bytes_max: int = Field(16 * MIB, ge=1024, le=1024 * MIB, description="Largest body of a unary response.")
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
