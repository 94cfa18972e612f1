"""docs/performance.md: its tables, targets and plots, from the kept results; and the environment of a run."""

from lab.bench import h2load
from lab.bench.contenders import BRIDGE, read_versions
from lab.environment import ask_version, describe_environment
from lab.report import Page, build_table
from tests.kit.processes import find_program

__all__ = ["PAGE", "describe_surroundings", "write_page"]

PAGE = Page(
    "performance",
    beside=frozenset({"cpu", "paced", "kinds", "shapes", "tls", "sizes", "callers"}),
    reference=BRIDGE.title,
)
LIBRARIES = ("grpcio", "protobuf", "httptools", "httpx2", "aiohttp", "openai", "uvloop")


def write_page() -> None:
    """Write the page's tables and the plots."""
    from lab.bench import plots, summary, targets  # noqa: PLC0415 - what only prints does without matplotlib

    kept = {part: each.results for part, each in PAGE.read_all().items()}
    PAGE.write_tables(
        {"summary": build_table(*summary.summarize(kept)), "targets": build_table(*targets.compare(kept))}
    )
    plots.draw(kept, PAGE.results)


def describe_surroundings() -> dict[str, str]:
    """Return the environment of a run, with the programs that it measures or calls with."""
    nginx = ask_version(find_program("nginx"), "-v", r"nginx/(\S+)")
    return describe_environment(LIBRARIES, h2load=h2load.version(), nginx=nginx, **read_versions())
