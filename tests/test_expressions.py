"""No regular expression of bridge/ takes more than the length of a text that a caller or a gateway chose.

`re` tries again from each place, and holds the GIL: two repetitions side by side that match the same characters, or a
look ahead from each of many places, take the square of a text, and the whole process stands still meanwhile. Each
module that uses `re` is in one of two tables: with its worst texts, of a size at which the square takes minutes, or
with the reason why it has none.
"""

import ast
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridge.admin.site import is_local_host
from bridge.core.error_body import read_document
from bridge.core.error_status import find_retry_ms, find_status, is_missing_route
from bridge.core.errors import BridgeError
from bridge.core.headers import HeaderPolicy, add_request_id
from bridge.core.http_errors import parse_retry_after
from bridge.core.json_text import replace_lone_surrogates
from bridge.core.media_type import choose_media_type, get_charset
from bridge.core.redact import redact, redact_and_truncate
from bridge.core.terminal import escape_controls
from bridge.core.validate import validate
from bridge.emulator.model import answer
from bridge.server.cors import Cors
from bridge.server.h2.headers import MalformedError, check_trailers
from bridge.server.mesh import create_mesh_identity
from bridge.server.protocols.grpc import MessageError, encode_metadata, parse_timeout
from bridge.server.protocols.json_messages import decode_json
from bridge.settings import MeshSettings
from bridge.telemetry.trace_context import find_trace_id
from bridge.upstream.coding import describe_coding
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.ollm_options_pb2 import OllmOptions

ROOT = Path(__file__).parent.parent / "bridge"
CHARS = 2**20


class Worst(NamedTuple):
    """A text for a function: a piece of it again and again, between a start and an end."""

    act: Callable[[str], Any]
    piece: str
    before: str = ""
    after: str = ""

    def build(self) -> str:
        return self.before + self.piece * (CHARS // len(self.piece)) + self.after


def build_all(act: Callable[[str], Any], *texts: str | tuple[str, ...]) -> list[Worst]:
    """Return the worst texts of a function, each a piece, or what is before it, the piece, and what is behind it."""
    parts = [("", text, "") if isinstance(text, str) else (*text, "")[:3] for text in texts]
    return [Worst(act, piece, before, after) for before, piece, after in parts]


def find_identity(header: str) -> Callable[[str], Any]:
    mesh = create_mesh_identity(MeshSettings(identity_header=header))
    return lambda text: mesh.find([(header, text)], "ipv4:127.0.0.1:1")


def validate_episode(text: str) -> None:
    validate(CreateChatCompletionRequest(ollm=OllmOptions(episode_id=text)), stream=False)


def find_details(text: str) -> None:
    find_retry_ms([{"details": [{"@type": "google.rpc.RetryInfo", "retryDelay": text}]}])


def is_bare_route(text: str) -> bool:
    return is_missing_route(text, is_bare=True)


def return_header(text: str) -> None:
    HeaderPolicy(product="a").returned_metadata([(text, ""), ("x-request-id", text)])


def answer_text(text: str) -> None:
    answer({"messages": [{"role": "user", "content": text}]})


def decode_value(text: str) -> None:
    decode_json(json.dumps({"seed": text}).encode(), CreateChatCompletionRequest)


def decode_key(text: str) -> None:
    decode_json(json.dumps({text: 1}).encode(), CreateChatCompletionRequest)


NAMES = ("a", "a.", "a-", ("a", " "), ("a", ","), ("a", "\t,"))
WORST: dict[str, list[Worst]] = {
    "core.redact": [
        *build_all(
            redact,
            *("api_key:", "password: ", "password\\", ("password", " "), ('password" : ', "\\"), ("password=", "\\")),
            *("?key=", "sk-", "gsk_", "eyJ", "-eyJaaaaaa", ("eyJaaaaa", ".a"), "bearer ", ("bearer", " ", '"')),
            *(("basic ", "a"), ("basic", " "), "basic a/", "a://", ("a:", "\\"), ("a" * 21 + "://", "b")),
        ),
        *build_all(lambda text: redact(text, ["a\\\\b\"/'<>&"]), ("a", "\\"), "&amp;", "a%25", "&#0"),
        *build_all(lambda text: redact(text, ['"' * 20, "/" * 20, "%25" * 9]), '\\"', "\\/", "%25"),
        *build_all(lambda text: redact_and_truncate(text, 200), "api_key:"),
    ],
    "core.media_type": [
        *build_all(
            choose_media_type, ("a/b,", '\\"', "\\"), ("a/b,", '\\"', "\\\n"), ('a/b,"', "\\"), ',"', '"\\,', "a/b,"
        ),
        *build_all(choose_media_type, ("a/b", " ", ",x"), ("a/b,", " "), ("a/b;", '"'), (",", "a"), (",a/", "a", "/")),
        *build_all(
            get_charset, ";charset=", "; ", (";", " "), (";charset", " "), (";charset=", " "), (';charset="', ";")
        ),
    ],
    "core.error_body": [
        *build_all(
            lambda text: read_document(b"\xff", text), "charset", ("charset", " "), ("charset=", " "), "charset= "
        ),
        *build_all(lambda text: read_document(text.encode()), " ", "data", "data:", " data:"),
    ],
    "core.error_status": [
        *build_all(
            is_bare_route, "404", " 404", "error", "/", "route ", "the ", ("not found", " "), ("404", ":"), "POST "
        ),
        *build_all(lambda text: find_status([{"code": text}]), ("400.", "0", "x"), "_error", " "),
        *build_all(find_details, "1", ("1.", "1"), "1s"),
    ],
    "core.headers": [
        *build_all(return_header, "x-", "x-ratelimit-", ("x-", "-gateway-version", "x"), "a-bin", "grpc-"),
        *build_all(lambda text: add_request_id([], text), "a"),
    ],
    "core.http_errors": [
        *build_all(lambda text: parse_retry_after([("retry-after", text)], now_s=0), "1", ("1.", "1", "x"))
    ],
    "core.json_text": [
        *build_all(
            lambda text: replace_lone_surrogates(text.encode()), "\\ud800", "\\udc00", "\\ud800\\udc00", "\\", "\\u"
        ),
    ],
    "core.terminal": [*build_all(escape_controls, "\x1b", "a")],
    "core.validate": [*build_all(validate_episode, "urn:uuid:", "0", "{", "0000-")],
    "upstream.coding": [*build_all(lambda text: describe_coding([text]), "a", " ", ",")],
    "server.mesh": [
        *build_all(
            find_identity("x-forwarded-client-cert"), "By=", 'By="', "By=a;", "By=;", ('By="', "\\"), ('By="', '\\"')
        ),
        *build_all(
            find_identity("x-forwarded-client-cert"), 'By="";', ("By=", "a", ","), "a", ("URI=spiffe://", "a", " ")
        ),
        *build_all(find_identity("l5d-client-id"), *NAMES),
    ],
    "server.cors": [*build_all(lambda text: Cors(["*"]).answer_preflight(b"", text.encode()), *NAMES)],
    "server.h2.headers": [
        *build_all(lambda text: check_trailers([(b"a", text.encode()), (text.encode(), b"")]), "a", "\r"),
    ],
    "server.protocols.grpc": [
        *build_all(lambda text: parse_timeout(text.encode()), "1"),
        *build_all(lambda text: encode_metadata([("a", text)]), "\x7f", "a"),
    ],
    "server.protocols.json_messages": [
        *build_all(decode_value, (" at a", ".", " b"), " at CreateChatCompletionRequest.", "Failed to parse a field: "),
        *build_all(decode_key, ('x" at "a.', "["), '" at "', "\n", 'has no field named "'),
    ],
    "admin.site": [*build_all(is_local_host, "a", ":", "[", ("[", "a"), ("a:", "1", "x"))],
    "telemetry.trace_context": [
        *build_all(
            lambda text: find_trace_id([("traceparent", text)]),
            "0",
            "00-",
            (f"00-{'1' * 32}-{'1' * 16}-00-", "a", "\n"),
        ),
    ],
    "emulator.model": [*build_all(answer_text, " ", ("a", " "), ("a", " ", "b"), "\n")],
}


# Modules without such a text, with the reason.
HARMLESS = {
    "core.x509": "the operator's files",
    "settings.load": "the operator's settings",
    "settings.describe": "the operator's settings",
    "settings.addresses": "the operator's settings",
    "cli.terminal": "one character",
    "server.certificate": "names of a certificate that an authority of the operator's has signed",
    "server.protocols.connect": "digits, up to ten",
    "upstream.framing": "five bytes",
    "emulator.oddities": "the text of a scenario",
}


def list_modules() -> set[str]:
    """Return the names in `bridge` of the modules that use `re`."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if "re" in names or (isinstance(node, ast.ImportFrom) and node.module == "re"):
                found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def test_every_module_with_regular_expressions_is_in_one_table():
    assert list_modules() == WORST.keys() | HARMLESS.keys()
    assert not WORST.keys() & HARMLESS.keys()


@pytest.mark.parametrize(
    "worst",
    [
        pytest.param(worst, id=f"{name}-{worst.before}{worst.piece}*{worst.after}")
        for name, all_worst in WORST.items()
        for worst in all_worst
    ],
)
def test_worst_text_takes_no_more_than_its_length(worst):
    with contextlib.suppress(BridgeError, MalformedError, MessageError):
        worst.act(worst.build())
