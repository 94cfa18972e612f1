"""A picture of a terminal: `python -m docs.terminal` runs `ollm-bridge demo` in one and writes docs/terminal.svg.

The program runs on a pseudo terminal, so it writes its colors. Lines that are longer than the terminal is wide are cut,
where a real one would wrap them. The ids and ports are those of the run, so nothing compares the picture.
"""

import fcntl
import html
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Run", "draw", "parse", "record"]

COLUMNS: Final = 118
_ROWS: Final = 50
_STYLES: Final = {"1": "bold", "2": "faint", "31": "red"}
_ESCAPE: Final = re.compile(r"\x1b\[([\d;]*)m")
_FONT: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_COLORS: Final = {"bold": "#ffffff", "faint": "#8b949e", "red": "#ff7b72"}
_CHAR_WIDTH: Final = 7.83
"""Of the font at its size; each line is stretched to it, since fonts differ."""
_FONT_SIZE: Final = 13
_LINE_HEIGHT: Final = 19
_MARGIN: Final = 16


class Run(NamedTuple):
    """Characters of one style, "" for none."""

    style: str
    text: str


def record(command: Sequence[str], *, columns: int = COLUMNS) -> str:
    """Run a command on a terminal so wide, and return what it wrote. Raises CalledProcessError if it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    environment.pop("NO_COLOR", None)
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, env=environment, **streams) as process:  # noqa: S603 - a command of our own
        os.close(theirs)
        data = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, data)
    return data.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side has closed the terminal
        return b""


def parse(text: str, *, columns: int = COLUMNS) -> list[list[Run]]:
    """Return the lines of a terminal's text, each as runs of one style, cut to the columns."""
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    style = ""
    found = []
    for line in lines:
        runs = []
        parts = _ESCAPE.split(line)
        for number, part in enumerate(parts):
            if number % 2:
                style = _STYLES.get(part, "")
            elif part:
                runs.append(Run(style, part))
        found.append(list(_cut(runs, columns)))
    return found


def _cut(runs: list[Run], columns: int) -> Iterator[Run]:
    """Yield the runs as far as there is room; the last character of a line that is cut is an ellipsis."""
    left = columns
    is_cut = sum(len(run.text) for run in runs) > columns
    for run in runs:
        if is_cut and len(run.text) >= left:
            yield Run(run.style, run.text[: left - 1] + "…")
            return
        yield run
        left -= len(run.text)


def draw(lines: Sequence[Sequence[Run]], *, columns: int = COLUMNS, title: str) -> str:
    """Return the lines as an SVG document."""
    width = round(columns * _CHAR_WIDTH) + 2 * _MARGIN
    height = len(lines) * _LINE_HEIGHT + 2 * _MARGIN
    rules = "".join(f".{style}{{fill:{color}}}" for style, color in _COLORS.items())
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{html.escape(title)}</title>",
        f"<style>text{{font:{_FONT_SIZE}px {_FONT};fill:#e6edf3;white-space:pre}}",
        f".bold{{font-weight:bold}}{rules}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
    ]
    for number, line in enumerate(lines):
        y = _MARGIN + number * _LINE_HEIGHT + _FONT_SIZE
        column = 0
        for run in line:
            x = _MARGIN + column * _CHAR_WIDTH
            style = f' class="{run.style}"' if run.style else ""
            length = len(run.text) * _CHAR_WIDTH
            body.append(
                f'<text x="{x:.1f}" y="{y}" textLength="{length:.1f}" xml:space="preserve"{style}>'
                f"{html.escape(run.text, quote=False)}</text>"
            )
            column += len(run.text)
    return "\n".join([*body, "</svg>"]) + "\n"


def main() -> int:
    """Write the picture."""
    shown = "\x1b[1m$ ollm-bridge demo\x1b[0m\n" + record([sys.executable, "-m", "bridge", "demo"])
    title = "ollm-bridge demo: four calls, what chat prints of each, and what the gateway got"
    Path(__file__).with_name("terminal.svg").write_text(draw(parse(shown), title=title), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
