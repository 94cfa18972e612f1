"""A TensorZero gateway under the names of the ollm gateway.

TensorZero's `tensorzero::` fields match the `ollm::` fields one for one; this application renames them on the way in,
routes a bare model name to that model, and asks for a key as the dev gateway does. Everything else passes: the other
fields, byte for byte; the client's headers; the reply's status, headers and body, each read written on at once. The
reply keeps TensorZero's spelling (`tensorzero_raw_usage`, `tensorzero::model_name::…`), for the bridge has to cope with
keys that it cannot know. Only top-level fields are renamed: what a content part may hold is not known of ollm.

A client that goes away closes the connection to TensorZero, and a reply that breaks off breaks off here too. GET
/shim/calls has the number of open calls: TensorZero finishes a stream whose client has disconnected, and
llama-server to the end of a unary call, so nobody behind this application can tell that a cancellation came through.
"""

import asyncio
from collections.abc import Callable

import aiohttp
import msgspec
from aiohttp import web

__all__ = ["serve"]

# TensorZero's own limit.
BODY_BYTES_MAX = 100 * 1024 * 1024

# RFC 9110, 7.6.1; and what belongs to this connection alone.
HOP_HEADERS = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
REQUEST_HEADERS_DROPPED = HOP_HEADERS | {"authorization", "content-length", "host"}


async def serve(announce: Callable[[str], None], *, tensorzero_url: str, key: str | None) -> None:
    """Serve on a free port of 127.0.0.1 until cancelled. `key` None asks for no key, as the prod gateway does."""
    # TensorZero's bytes are to arrive as they are, and no header is to be sent that the client did not send.
    async with aiohttp.ClientSession(
        auto_decompress=False,
        skip_auto_headers=["Accept", "Accept-Encoding", "Content-Type", "User-Agent"],
        timeout=aiohttp.ClientTimeout(total=None),
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:
        calls = 0

        async def count(_request: web.Request) -> web.Response:
            return web.json_response({"open": calls})

        async def handle(request: web.Request) -> web.StreamResponse:
            nonlocal calls
            calls += 1
            try:
                return await forward(request)
            finally:
                calls -= 1

        async def forward(request: web.Request) -> web.StreamResponse:
            if key is not None and (refusal := _key_refusal(request.headers.get("Authorization"), key)):
                return _unauthorized(*refusal)
            async with session.request(
                request.method,
                tensorzero_url + request.raw_path.replace("/v1/", "/openai/v1/", 1),
                data=_tensorzero_body(await request.read()) or None,
                headers=[(k, v) for k, v in request.headers.items() if k.lower() not in REQUEST_HEADERS_DROPPED],
                allow_redirects=False,
            ) as reply:
                return await _pass_on(request, reply)

        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_get("/shim/calls", count)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        announce(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await asyncio.Event().wait()


async def _pass_on(request: web.Request, reply: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, reason=reply.reason)
    for name, value in reply.headers.items():
        if name.lower() not in HOP_HEADERS:
            response.headers.add(name, value)
    await response.prepare(request)
    try:
        async for piece in reply.content.iter_any():
            await response.write(piece)
    except aiohttp.ClientError:
        if request.transport is not None:
            request.transport.abort()
        raise
    await response.write_eof()
    return response


def _tensorzero_body(body: bytes) -> bytes:
    """`body` with its top-level `ollm::` keys and its model renamed, and every other value as it was spelled.

    What is not a JSON object goes on unchanged: refusing it is TensorZero's part.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return body
    fields = {_tensorzero_name(name): value for name, value in fields.items()}
    match msgspec.json.decode(fields.get("model", b"null")):
        case str(model):
            fields["model"] = msgspec.Raw(msgspec.json.encode(_tensorzero_selector(model)))
    return msgspec.json.encode(fields)


def _tensorzero_selector(model: str) -> str:
    """TensorZero refuses a bare name; ollm takes it for a model's."""
    name = _tensorzero_name(model)
    return name if name.startswith("tensorzero::") else f"tensorzero::model_name::{name}"


def _tensorzero_name(name: str) -> str:
    return f"tensorzero::{name.removeprefix('ollm::')}" if name.startswith("ollm::") else name


def _key_refusal(authorization: str | None, key: str) -> tuple[str, str] | None:
    """The `code` and `message` of a 401; None when `key` was presented."""
    match (authorization or "").partition(" "):
        case ("", _, _):
            return "missing_api_key", "no API key was given in the Authorization header"
        case ("Bearer", _, presented) if presented == key:
            return None
        case ("Bearer", _, _):
            return "invalid_api_key", "the API key is not known"
        case _:
            return "invalid_authorization", "the Authorization header must start with 'Bearer '"


def _unauthorized(code: str, message: str) -> web.Response:
    error = {"message": message, "type": "authentication_error", "code": code, "param": None}
    return web.json_response({"error": error}, status=401)
