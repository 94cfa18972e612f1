"""The calls as an ASGI application, for a server that has HTTP/2 and trailers: gRPC, gRPC-Web and Connect at one port.

    OLLM_BRIDGE_UPSTREAM__BASE_URL=http://127.0.0.1:8080 hypercorn --bind 127.0.0.1:8000 examples.asgi:application

docs/asgi.md says what the bridge's own ports have that this has not.
"""

import contextlib

from bridge.http_server.shell import Message, Receive, Send
from bridge.server.asgi import AsgiApplication
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.server import make_header_policy
from bridge.server.service import ChatCompletionService
from bridge.settings import Settings, load
from bridge.upstream.client import Upstream


class Application:
    """The calls, and the connections to the gateway while the server lives."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        policy = make_header_policy(settings)
        self._upstream = Upstream(settings.upstream, policy, connections_max=settings.calls_max)
        service = ChatCompletionService(self._upstream, settings.upstream, own_key=policy.own_key)
        self._boundary = Boundary(service, policy, Callers(settings), settings)
        self._calls = AsgiApplication(self._boundary, settings)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or live as long as the server does."""
        if scope["type"] != "lifespan":
            await self._calls(scope, receive, send)
            return
        async with contextlib.AsyncExitStack() as stack:
            await receive()
            await stack.enter_async_context(self._upstream)
            stack.push_async_callback(self._boundary.drain.run, self._settings.drain_grace_s)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


application = Application(load().settings)
"""With the settings of the environment."""
