"""HTTP/2 (RFC 9113) from the server's side, pure: bytes in, events and bytes out. No I/O; time is told by the user."""
