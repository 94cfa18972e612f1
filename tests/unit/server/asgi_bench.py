"""An ASGI server without a network: a request is a scope and what comes, and what was sent stays in a list."""

import asyncio
from typing import Any

from bridge.core.headers import HeaderPolicy
from bridge.server.asgi import AsgiApplication
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.settings import Settings
from tests.kit.client import Records, chat
from tests.kit.waiting import WAIT_S
from tests.kit.web import SERVICE, encode_request, get_content_type
from tests.unit.server.fake_service import Service

UNARY, STREAM = "CreateChatCompletion", "StreamChatCompletion"
TRAILERS = {"http.response.trailers": {}}


class Bench:
    """The application around a service, and the records of its calls."""

    def __init__(self, service: Service, **settings: Any) -> None:
        made = Settings(**settings)
        self.records = Records()
        self.boundary = Boundary(service, HeaderPolicy(product="test/1"), Callers(made), made, [self.records])
        self.application = AsgiApplication(self.boundary, made)

    def request(self, protocol: str = "connect+json", *, stream: bool = False, **options: Any) -> "Request":
        body = encode_request(chat(), protocol, stream=stream)
        headers = {"content-type": get_content_type(protocol, stream=stream)}
        method = STREAM if stream else UNARY
        return Request(self.application, f"/{SERVICE}/{method}", headers | options.pop("headers", {}), body, **options)


class Request:
    """One request. `events` is what was sent; `disconnect` makes the caller leave; `writable` is its reading."""

    def __init__(self, application, path, headers, body=b"", *, method="POST", extensions=None, client=("::1", 7)):
        self.events: list[dict[str, Any]] = []
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.writable = asyncio.Event()
        self.writable.set()
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.scope = {"type": "http", "method": method, "path": path, "headers": encoded, "client": client}
        self.scope["extensions"] = extensions or {}
        self.application = application
        if body is not None:
            self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})

    async def send(self, event):
        await self.writable.wait()
        self.events.append(event)

    def disconnect(self):
        self.incoming.put_nowait({"type": "http.disconnect"})

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.application(self.scope, self.incoming.get, self.send))

    async def run(self) -> "Request":
        async with asyncio.timeout(WAIT_S):
            await self.start()
        return self

    @property
    def status(self) -> int:
        return self.events[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.events[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(event["body"] for event in self.events if event["type"] == "http.response.body")

    @property
    def is_whole(self) -> bool:
        return self.events != [] and not self.events[-1].get("more_body")
