"""`helm test`: whether the installed bridge is healthy, at its admin and its call port. Runs in the bridge's image."""

import http.client
import os
import socket
import ssl
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ADMIN, CALLS, KIND = os.environ["ADMIN"], os.environ["CALLS"], os.environ["KIND"]
AUTHORITY = Path(os.environ.get("CA_FILE", "/run/ca/ca.crt"))
SERVER_NAME = os.environ.get("SERVER_NAME", "")
WAIT_S = float(os.environ.get("WAIT_S", "60"))


def check_admin_port() -> str:
    """Return what /healthz says."""
    host, _, port = ADMIN.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("GET", "/healthz", headers={"Host": "localhost"})
        answer = connection.getresponse()
        text = f"{ADMIN}: {answer.read().decode().strip()}"
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise OSError(text)
    return text


def check_call_port() -> str:
    """Return what gRPC's health service says, or how far it can be asked."""
    if KIND == "mutual":
        return f"{CALLS}: not asked, since callers need a certificate"
    if KIND == "tls" and not AUTHORITY.exists():
        return shake_hands()
    with open_channel() as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    if health.status != health_pb2.HealthCheckResponse.SERVING:
        raise OSError(f"{CALLS}: {health_pb2.HealthCheckResponse.ServingStatus.Name(health.status)}")
    return f"{CALLS}: SERVING"


def open_channel() -> grpc.Channel:
    """Return a channel to the call port, which verifies the certificate if there is TLS."""
    if KIND != "tls":
        return grpc.insecure_channel(CALLS)
    options = [("grpc.ssl_target_name_override", SERVER_NAME)] if SERVER_NAME else []
    return grpc.secure_channel(CALLS, grpc.ssl_channel_credentials(AUTHORITY.read_bytes()), options)


def shake_hands() -> str:
    """Return that the port speaks HTTP/2 over TLS; nothing can be said about its certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = CALLS.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as secured:
        if secured.selected_alpn_protocol() != "h2":
            raise OSError(f"{CALLS}: does not speak HTTP/2 over TLS")
    return f"{CALLS}: speaks TLS; its certificate is NOT CHECKED, since the Secret has no ca.crt"


def main() -> int:
    """Print what each port says, and return 1 if one does not answer well in time."""
    until = time.monotonic() + WAIT_S
    for check in (check_admin_port, check_call_port):
        while True:
            try:
                print(check())
                break
            except (OSError, http.client.HTTPException, grpc.RpcError) as error:
                if time.monotonic() > until:
                    reason = error.details() if isinstance(error, grpc.RpcError) else error
                    print(f"{check.__name__}: {reason}", file=sys.stderr)
                    return 1
            time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
