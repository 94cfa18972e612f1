"""What a process that has started says of itself, behind its address: for a person who looks at its first line."""

from typing import Final

import structlog

from bridge import __version__
from bridge.settings import Settings

__all__ = ["describe_process", "log_start"]

_LOG: Final = structlog.get_logger("ollm_bridge")


def describe_process(settings: Settings, *, page: str, web: str = "") -> str:
    """Return name and version, the upstream, and the addresses of the web port and the status page, if any."""
    parts = [f"ollm-bridge {__version__}", f"upstream {settings.upstream.base_url}"]
    if web:
        scheme = "https" if settings.tls.cert_file is not None else "http"
        parts.append(f"web {scheme}://{web}/")
    if page:
        parts.append(f"page http://{page}/")
    return ", ".join(parts)


def log_start(settings: Settings, *, address: str, web: str, page: str, workers: int) -> None:
    """Log that calls are taken from now on, and by what."""
    _LOG.info(
        "started",
        version=__version__,
        listen=address,
        web_listen=web,
        admin_listen=page,
        upstream=settings.upstream.base_url,
        workers=workers,
    )
