"""Tests of bridge/server/mesh.py: one name, in one header, from the mesh's proxy alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import BridgeError, Code
from bridge.server.mesh import create_mesh_identity
from bridge.settings import MeshSettings

XFCC, L5D = "x-forwarded-client-cert", "l5d-client-id"
SIDECAR = "ipv4:127.0.0.6:40000"
SEARCH, EVIL = "spiffe://cluster.local/ns/search/sa/indexer", "spiffe://cluster.local/ns/evil/sa/m"
BY = "By=spiffe://cluster.local/ns/llm/sa/ollm-bridge;Hash=0a1b"
LINKERD = "indexer.search.serviceaccount.identity.linkerd.cluster.local"


def find(value, *, header=XFCC, peer=SIDECAR, **settings):
    values = value if isinstance(value, list) else [value]
    found = create_mesh_identity(MeshSettings(identity_header=header, **settings))
    return found.find([("user-agent", "x"), *((header, each) for each in values)], peer)


def test_nothing_is_trusted_unless_a_setting_names_the_header():
    assert create_mesh_identity(MeshSettings()) is None


NAMED = {
    "Istio": (XFCC, f'{BY};Subject="";URI={SEARCH}', SEARCH),
    "Envoy, with a subject and a DNS name": (XFCC, f'{BY};Subject="CN=a,O=b\\"c;d";URI={SEARCH};DNS=a.example', SEARCH),
    "quoted": (XFCC, f'{BY};URI="{SEARCH}"', SEARCH),
    "Linkerd": (L5D, LINKERD, LINKERD),
}


@pytest.mark.parametrize(("header", "value", "identity"), NAMED.values(), ids=NAMED)
def test_proxys_header_names_the_caller(header, value, identity):
    assert find(value, header=header) == identity


NAMELESS = {
    "none": (XFCC, []),
    "none of Linkerd": (L5D, []),
    "the header of the other mesh": (L5D, f"{BY};URI={SEARCH}"),
    "empty": (XFCC, ""),
    "no URI": (XFCC, f'{BY};Subject="CN=a"'),
    "no SPIFFE id": (XFCC, f"{BY};URI=https://a.example"),
    "two URIs": (XFCC, f"{BY};URI={SEARCH};URI={EVIL}"),
    "a caller's own before the proxy's": (XFCC, f"URI={SEARCH},{BY};URI={EVIL}"),
    "an open quote before the proxy's": (XFCC, f'a=",{BY};Subject="CN=x";URI={EVIL}'),
    "an open quote, and an id in a subject": (XFCC, f'a=",{BY};Subject=",URI={SEARCH};Hash=\\"";URI={EVIL}'),
    "two headers": (XFCC, [f"URI={SEARCH}", f"{BY};URI={EVIL}"]),
    "two headers of Linkerd": (L5D, [LINKERD, LINKERD]),
    "two names": (L5D, f"{LINKERD}, {LINKERD}"),
    "bytes": (L5D, b"\xff"),
}


@pytest.mark.parametrize(("header", "value"), NAMELESS.values(), ids=NAMELESS)
def test_header_that_does_not_name_exactly_one_caller_is_refused(header, value):
    with pytest.raises(BridgeError) as caught:
        find(value, header=header)
    assert caught.value.code is Code.UNAUTHENTICATED
    assert header in caught.value.message


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=60))
def test_whatever_a_caller_puts_before_the_proxys_element_it_is_not_named_otherwise(text):
    proxys = f'{BY};Subject="CN=x";URI={EVIL}'
    for value in (f"{text},{proxys}", f"URI={SEARCH};{text},{proxys}", f'{text}",{proxys}'):
        with pytest.raises(BridgeError):
            find(value)


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:1", "ipv6:%5B::1%5D:1", "ipv6:[::1]:1", "ipv6:[::ffff:127.0.0.6]:1"])
def test_sidecar_on_loopback_is_trusted(peer):
    assert find(LINKERD, header=L5D, peer=peer) == LINKERD


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.9:1", "ipv6:[2001:db8::1]:1", "unix:", "unix:127.0.0.1:1", "ipv4:x:1"])
def test_header_of_another_peer_counts_for_nothing(peer):
    with pytest.raises(BridgeError, match="from its mesh's proxy alone") as caught:
        find(LINKERD, header=L5D, peer=peer)
    assert caught.value.code is Code.UNAUTHENTICATED


def test_settings_say_which_peer_is_the_proxy():
    assert find(LINKERD, header=L5D, peer="ipv4:10.0.0.9:1", proxies=["10.0.0.9"]) == LINKERD
    with pytest.raises(BridgeError, match="from its mesh's proxy alone"):
        find(LINKERD, header=L5D, peer=SIDECAR, proxies=["10.0.0.9"])


def test_identity_that_is_not_on_the_list_is_denied_and_named():
    assert find(f"{BY};URI={SEARCH}", allowed_identities=[SEARCH]) == SEARCH
    with pytest.raises(BridgeError, match=f"the identity {EVIL} from the mesh is not in") as caught:
        find(f"{BY};URI={EVIL}", allowed_identities=[SEARCH])
    assert caught.value.code is Code.PERMISSION_DENIED
