"""A chat completion: the request's bytes out, the reply's or the chunks' bytes in.

An error anywhere in an answer ends the call (`envelope.py`), and so does the end of a completion that is not whole
(`completion.py`). Chunks are in `chat_stream.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from bridge.core.chat_stream import ChatStream
from bridge.core.completion import ChoicesError, Completion, check_count
from bridge.core.dialect import OLLM_PREFIX, REPLY, REQUEST
from bridge.core.envelope import find_error
from bridge.core.error_body import read_excerpt
from bridge.core.errors import (
    NOTHING_ASKED,
    Asked,
    BridgeError,
    Code,
    Resource,
    Violation,
    invalid_request,
    too_large_error,
)
from bridge.core.http_errors import error_from_response
from bridge.core.json_text import JsonError, JsonTooLargeError, parse
from bridge.core.source import Source
from bridge.core.validate import validate
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, CreateChatCompletionResponse
from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = ["ChatStream", "decode_reply", "decode_request_json", "encode_request", "requested_resource"]

_BOM: Final = b"\xef\xbb\xbf"
_TAGS: Final = f"{OLLM_PREFIX}tags"
_NO_TAGS: Final[Mapping[str, str]] = {}


# Requests


def encode_request(
    request: CreateChatCompletionRequest,
    *,
    stream: bool,
    tags: Mapping[str, str] = _NO_TAGS,
    identity_tags: Mapping[str, str] = _NO_TAGS,
    include_usage: bool = False,
) -> bytes:
    """Return the JSON body of a request. Raises BridgeError (INVALID_REQUEST) with every violation found.

    `tags` are added to the caller's `ollm::tags`, but for keys that the caller has set; `identity_tags` replace those.
    `include_usage` asks for a stream's usage in the place of a caller who did not.
    """
    violations: list[Violation] = validate(request, stream=stream)
    body: dict[str, Any] = REQUEST.write(request, None, violations)
    if violations:
        raise invalid_request(violations)
    own = body.get(_TAGS, {})
    if identity_tags and not isinstance(own, dict):
        own = _read_extra_tags(request)
    if (tags or identity_tags) and isinstance(own, dict):  # else extra_json has them in a shape of the caller's
        body[_TAGS] = {**tags, **own, **identity_tags}
    if not stream:
        if request.HasField("stream_options"):
            del body["stream_options"]
        return orjson.dumps(body)
    body["stream"] = True
    if request.ollm.include_raw_usage or include_usage:
        options = body.setdefault("stream_options", {})
        if isinstance(options, dict):  # else extra_json has them in a shape of the caller's
            if include_usage:
                options["include_usage"] = True
            options.setdefault("include_usage", True)
    return orjson.dumps(body)


def _read_extra_tags(request: CreateChatCompletionRequest) -> dict[str, Any]:
    """Return the tags that extra_json has. Raises BridgeError if they are of a shape that no tag can be added to."""
    name = f'extra_json["{_TAGS}"]' if _TAGS in request.extra_json else 'ollm.extra_json["tags"]'
    tags = orjson.loads(request.extra_json.get(_TAGS) or request.ollm.extra_json["tags"])
    if not isinstance(tags, dict):
        raise invalid_request([Violation(name, "expected a JSON object, to which the bridge adds the caller's tag")])
    return tags


def decode_request_json(text: bytes | str) -> CreateChatCompletionRequest:
    """Return the request that a JSON object of the gateway's API stands for: the way back of `encode_request`.

    Only the form is read; `encode_request` judges what the request says. Raises ValueError if the text is no object.
    """
    value, source_text = parse(text.encode() if isinstance(text, str) else text)
    arguments = REQUEST.read(value, Source(source_text), ())
    if arguments is None:
        raise ValueError(f"expected a JSON object, found a value of type {type(value).__name__}")
    return CreateChatCompletionRequest(**arguments)


def requested_resource(request: CreateChatCompletionRequest) -> Resource:
    """Return what a request selects: the thing that is missing if the upstream says "not found"."""
    prefix = f"{OLLM_PREFIX}function_name::"
    if request.model.startswith(prefix):
        if request.ollm.variant_name:
            return Resource("variant", request.ollm.variant_name)
        return Resource("function", request.model.removeprefix(prefix))
    return Resource("model", request.model.removeprefix(f"{OLLM_PREFIX}model_name::"))


# Replies


def decode_reply(
    body: bytes,
    *,
    http_status: int = 200,
    content_type: str = "application/json",
    may_be_cut: bool = False,
    require_finish_reason: bool = True,
    asked: Asked = NOTHING_ASKED,
) -> CreateChatCompletionResponse:
    """Return the completion in the body of a 2xx answer. Raises BridgeError if it is an error, or not whole.

    `may_be_cut`: the body ended with its connection, so that half a JSON document is a connection that was lost.
    """
    try:
        value, text = parse(body.removeprefix(_BOM))
        source = Source(text)
        if type(value) is dict and value.get("choices") is not None and find_error(value, source, text) is None:
            return _read_reply(value, source, http_status, require_finish_reason=require_finish_reason)
    except JsonTooLargeError as error:
        raise too_large_error(f"the gateway's answer is too large: {error}", http_status) from error
    except JsonError as error:
        if may_be_cut and body.lstrip().startswith(b"{"):
            raise _lost_in_the_middle(http_status, body) from error
    raise error_from_response(http_status, body, content_type=content_type, asked=asked)


def _read_reply(
    value: dict[str, Any], source: Source, http_status: int, *, require_finish_reason: bool
) -> CreateChatCompletionResponse:
    """Return a whole completion. Raises BridgeError, with what came of it, if it is not whole."""
    check_count(value["choices"])
    reply = CreateChatCompletionResponse(**(REPLY.read(value, source, ()) or {}))
    failure = _find_failure(value["choices"], require_finish_reason=require_finish_reason)
    if failure is None:
        return reply
    upstream = UpstreamError(http_status=http_status, **read_excerpt(source.cut(()).encode()))
    usage = reply.usage if reply.HasField("usage") else None
    raise replace(failure, upstream=upstream).with_progress(http_status=http_status, chunks=0, usage=usage)


def _find_failure(choices: Any, *, require_finish_reason: bool) -> BridgeError | None:
    """Return why the choices of an answer are no whole completion."""
    completion = Completion()
    try:
        completion.track(choices)
    except ChoicesError as error:
        invalid = details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE
        return BridgeError(Code.INTERNAL, invalid, f"the upstream sent no completion: {error}")
    except BridgeError as error:
        return error
    if require_finish_reason and not completion.is_finished:
        return completion.build_incomplete_error("the answer ended")
    return None


def _lost_in_the_middle(http_status: int, body: bytes) -> BridgeError:
    message = f"the connection to the gateway was lost: it ended in the middle of the answer, after {len(body)} bytes"
    upstream = UpstreamError(http_status=http_status, **read_excerpt(body))
    return BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED, message, upstream=upstream)
