"""The settings of who calls: by certificate, by what a mesh says, and the tag that a name becomes."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from bridge.settings.addresses import check_networks
from bridge.settings.section import Section

__all__ = ["MeshSettings", "TagSettings", "TlsSettings"]


class TlsSettings(Section):
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
        description="SPIFFE IDs of the callers to accept, or DNS names if their certificates have no SPIFFE ID. Empty: "
        "every caller whose certificate is valid.",
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


class MeshSettings(Section):
    """Who calls, by what a mesh's proxy next to the bridge says. Only the addresses in `proxies` are believed."""

    identity_header: Literal["x-forwarded-client-cert", "l5d-client-id"] | None = Field(
        None,
        description="Metadata in which a mesh's proxy names the caller that it has verified: x-forwarded-client-cert "
        "(Istio, Envoy) or l5d-client-id (Linkerd). If set, every call must have it. Unset: it counts for nothing.",
    )
    proxies: Annotated[tuple[str, ...], AfterValidator(check_networks)] = Field(
        ("127.0.0.0/8", "::1/128"),
        description="Addresses of the proxies whose header is trusted. Whatever calls from there can be anybody: it "
        "must replace what callers send of the header.",
    )
    allowed_identities: tuple[str, ...] = Field(
        (), description="Identities of the callers to accept. Empty: every caller that the mesh names."
    )

    @model_validator(mode="after")
    def _check_header(self) -> Self:
        if self.allowed_identities and self.identity_header is None:
            raise ValueError("expected identity_header beside allowed_identities")
        return self


class TagSettings(Section):
    """Tags that the bridge adds to a call's `ollm::tags`. Those of metadata and fixed ones give way to the caller's."""

    fixed: dict[str, str] = Field(default_factory=dict, description="Tags to add to every call.")
    metadata: dict[str, str] = Field(
        default_factory=dict, description="Tags to copy from metadata, as tag = metadata key."
    )
    identity: str | None = Field(
        None,
        min_length=1,
        description="Tag to set to the caller's identity: SPIFFE ID, DNS name, or the name of its token. It replaces "
        "what the caller has set.",
    )
