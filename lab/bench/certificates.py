"""An authority and a server's certificate for 127.0.0.1, for the measures with TLS."""

from pathlib import Path

import trustme

__all__ = ["create_certificates"]


def create_certificates(folder: Path) -> Path:
    """Write ca.pem and server.pem, a certificate with its key, into the folder, and return it."""
    folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    pair = folder / "server.pem"
    pair.touch(mode=0o600)  # the bridge refuses a key that everybody may read
    server.private_key_and_cert_chain_pem.write_to_path(str(pair))
    return folder
