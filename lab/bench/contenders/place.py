"""The place of a contender: the upstream behind it, its cores, and the files of this run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.bench.processes import Process

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """`files` is a directory of this run's, for logs, configurations and (b)'s answers.

    `tls` is the folder of the certificates, if calls come by TLS and go on by TLS.
    """

    upstream: Process
    files: Path
    cores: Sequence[int]
    workers: int = 1
    tls: Path | None = None

    @property
    def upstream_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.upstream.address}"

    def log(self, name: str) -> Path:
        return self.files / f"{name}.log"
