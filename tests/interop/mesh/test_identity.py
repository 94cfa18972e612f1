"""Callers' identity from a real proxy: Envoy ends mutual TLS, and names the caller in x-forwarded-client-cert."""

import contextlib

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.kit.bridges import start_bridge_process
from tests.kit.certificates import URI, create_pem
from tests.kit.client import Bridge, chat
from tests.kit.envoy import get_connection_manager, get_listener, run_envoy

XFCC = "x-forwarded-client-cert"
SEARCH, ADMIN = "spiffe://cluster.local/ns/search/sa/indexer", "spiffe://cluster.local/ns/llm/sa/admin"
FORGED = [(XFCC, f'By=spiffe://cluster.local/ns/llm/sa/b;Hash=00;Subject="";URI={ADMIN}')]
KEY = ec.generate_private_key(ec.SECP256R1())
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"


def end_mutual_tls(certificate, details):
    """Return the edit with which Envoy asks for a certificate, and forwards its names so."""

    def edit(configuration):
        pair = {
            "certificate_chain": {"inline_string": certificate.cert_chain_pems[0].bytes().decode()},
            "private_key": {"inline_string": certificate.private_key_pem.bytes().decode()},
        }
        common = {
            "tls_certificates": [pair],
            "alpn_protocols": ["h2"],
            # Whose certificates are accepted is not what is tested: what they say is.
            "validation_context": {"trust_chain_verification": "ACCEPT_UNTRUSTED"},
        }
        context = {"@type": TLS, "common_tls_context": common, "require_client_certificate": True}
        (chain,) = get_listener(configuration)["filter_chains"]
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
        manager = get_connection_manager(configuration)
        manager["forward_client_cert_details"] = details
        manager["set_current_client_cert_details"] = {"uri": True, "subject": True}

    return edit


@contextlib.asynccontextmanager
async def open_client(address, authority, identity):
    """Open a channel with a certificate of this identity."""
    key = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, create_pem(URI(identity), key=KEY))
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        yield Bridge(address, channel)


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.mark.parametrize("forged", [False, True], ids=["honest", "forged"])
@pytest.mark.parametrize("details", ["SANITIZE_SET", "APPEND_FORWARD"])
async def test_name_is_that_of_the_certificate_whatever_the_caller_sends(
    emulator, tmp_path, authority, details, forged
):
    edit = end_mutual_tls(authority.issue_cert("localhost"), details)
    settings = {"mesh__identity_header": XFCC, "tags__identity": "who"}
    async with (
        start_bridge_process(emulator, **settings) as bridge,
        run_envoy(tmp_path, bridge.address, edit=edit) as envoy,
        open_client(envoy.address, authority, SEARCH) as client,
    ):
        answer = await client.ask(chat(), metadata=FORGED if forged else [])
        if forged and details == "APPEND_FORWARD":  # two names: no one knows which is the proxy's
            assert answer.failure.reason == "CALLER_UNAUTHENTICATED"
            assert not emulator.exchanges
        else:
            assert answer.failure is None
            assert emulator.exchanges[-1].tags == {"who": SEARCH}
        assert ADMIN not in str([exchange.tags for exchange in emulator.exchanges])


async def test_list_of_identities_admits_and_denies(emulator, tmp_path, authority):
    edit = end_mutual_tls(authority.issue_cert("localhost"), "SANITIZE_SET")
    settings = {"mesh__identity_header": XFCC, "mesh__allowed_identities": f'["{SEARCH}"]'}
    async with (
        start_bridge_process(emulator, **settings) as bridge,
        run_envoy(tmp_path, bridge.address, edit=edit) as envoy,
        open_client(envoy.address, authority, SEARCH) as listed,
        open_client(envoy.address, authority, ADMIN) as other,
    ):
        assert (await listed.ask(chat())).failure is None
        failure = (await other.ask(chat())).failure
        assert (failure.code, failure.reason) == ("PERMISSION_DENIED", "CALLER_DENIED")
        assert ADMIN in failure.message
        # Past the proxy nobody has a name.
        assert (await bridge.ask(chat())).failure.reason == "CALLER_UNAUTHENTICATED"
