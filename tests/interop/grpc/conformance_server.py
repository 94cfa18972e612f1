"""The server that Connect's conformance suite judges: `python -m tests.interop.grpc.conformance_server ENGINE FOLDER`.

The suite starts it, writes to its standard input what the server has to be, reads where it listens, and kills it. Each
message has its length before it, in four bytes. Certificates are written to the folder.
"""

import asyncio
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import structlog

from bridge.settings import Settings
from tests.interop.grpc import schema
from tests.interop.grpc.conformance_service import ConformanceService
from tests.interop.grpc.scripted import make_boundary
from tests.interop.grpc.transports import TRANSPORTS, WEB

ServerCompatRequest, ServerCompatResponse = (
    schema.get_message("conformance.proto", name) for name in ("ServerCompatRequest", "ServerCompatResponse")
)
_LENGTH = struct.Struct(">I")


async def main() -> None:
    (size,) = _LENGTH.unpack(sys.stdin.buffer.read(_LENGTH.size))
    wanted = ServerCompatRequest.FromString(sys.stdin.buffer.read(size))
    engine, folder = sys.argv[1:]
    settings = make_settings(wanted, Path(tempfile.mkdtemp(dir=folder)))
    async with (TRANSPORTS | WEB)[engine](make_boundary(ConformanceService(), settings), settings) as address:
        _tell_address(address, wanted.server_creds.cert if wanted.use_tls else b"")
        await asyncio.Event().wait()


def make_settings(wanted: Any, folder: Path) -> Settings:
    """Return the settings of a server as the suite wants it; certificates are written to the folder."""
    contents = {}
    if wanted.use_tls:
        contents = {"cert_file": wanted.server_creds.cert, "key_file": wanted.server_creds.key}
        if wanted.client_tls_cert:
            contents["client_ca_file"] = wanted.client_tls_cert
    for name, content in contents.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(content)
    limit = {"request_bytes_max": wanted.message_receive_limit} if wanted.message_receive_limit else {}
    return Settings(
        listen="127.0.0.1:0", web_listen="127.0.0.1:0", tls={name: str(folder / name) for name in contents}, **limit
    )


def _tell_address(address: str, certificate: bytes) -> None:
    host, _, port = address.rpartition(":")
    answer = ServerCompatResponse(host=host, port=int(port), pem_cert=certificate).SerializeToString()
    sys.stdout.buffer.write(_LENGTH.pack(len(answer)) + answer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the suite reads the standard output
    asyncio.run(main())
