"""The man page, bridge/cli/shell/ollm-bridge.1, from the arguments and the settings. docs/generate.py writes it.

It is in man(7)'s macros, and does not go through argparse's own help, whose lines differ from one Python to the next.
"""

import json
import re
from argparse import SUPPRESS, Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator

from pydantic import BaseModel

from bridge import __version__
from bridge.cli.arguments import build_parser
from bridge.settings import Settings

__all__ = ["render_manual"]

ABOUT = """ollm-bridge translates gRPC calls (and Connect and gRPC-Web, for browsers and curl) to a gateway's
`POST /v1/chat/completions` and its server-sent events. It loses nothing: a call ends with OK only if its completion is
whole, and each failure is a status with typed details."""
PRECEDENCE = """From low to high precedence: the file of `--config` (TOML), the environment, the command line. In the
environment a setting is OLLM_BRIDGE_ and its name in capitals, nested by two underscores; lists are JSON. An unknown
name or an invalid value stops the start. `ollm-bridge check` says what is wrong with them."""
EXAMPLE = """listen = "127.0.0.1:50051"

[upstream]
base_url = "https://gateway.example"
api_key_file = "/run/secrets/ollm"
"""
ENVIRONMENT = {
    "OLLM_BRIDGE_…": "A setting, as above.",
    "OLLM_API_KEY": "The key that `chat` sends.",
    "OTEL_…": "What OpenTelemetry's exporter reads, if `tracing.endpoint` is set.",
}
SIGNALS = {
    "SIGTERM, SIGINT": "Refuse new calls after `drain_delay_s`, let calls in flight finish for `drain_grace_s`, then "
    "end. A second one ends at once, with exit code 1.",
    "SIGHUP": "Reload files of keys, tokens and certificates that have changed. This also happens by itself.",
}
EXIT_CODES = {
    "0": "The command has done what it is for; `serve` has drained.",
    "1": "It has failed; `serve` was ended by a second signal.",
    "2": "The arguments or the settings can't be used. The text on standard error says why.",
    "130": "Interrupted.",
}


def render_manual() -> str:
    """Return the page."""
    return "\n".join(_list_lines()) + "\n"


def _list_lines() -> Iterator[str]:
    parser = build_parser()
    yield '.\\" Written by docs/generate.py: change docs/manual.py, or the arguments, and run `make docs`.'
    yield f'.TH OLLM\\-BRIDGE 1 "" "ollm\\-bridge {__version__}" "User Commands"'
    yield ".ad l"
    yield from (".SH NAME", "ollm\\-bridge \\- a gRPC front for gateways of chat completions", ".SH SYNOPSIS")
    commands = _find_commands(parser)
    for name in commands:
        yield from (".br", f"\\fBollm\\-bridge {name}\\fR [{_escape('OPTION')}]...")
    yield from (".SH DESCRIPTION", _format(ABOUT), ".SH COMMANDS")
    for name, (help_, command) in commands.items():
        yield from (f".SS {name}", _format(_form_sentence(help_)))
        for action in command._actions:  # noqa: SLF001 - argparse has no other list of them
            if action.dest != "help":
                yield from _list_item(_name(action), _form_sentence(_expand(action)))
        if command.epilog:
            yield from (".PP", _format(command.epilog))
    yield from (".SH SETTINGS", _format(PRECEDENCE), ".PP", ".nf", *map(_escape, EXAMPLE.splitlines()), ".fi")
    yield from _list_settings(Settings)
    for title, items in {"ENVIRONMENT": ENVIRONMENT, "SIGNALS": SIGNALS, "EXIT STATUS": EXIT_CODES}.items():
        yield f".SH {title}"
        for name, text in items.items():
            yield from _list_item(f"\\fB{_escape(name)}\\fR", text)
    yield from (".SH SEE ALSO", _format("docs/operations.md and docs/behavior.md in the project's source."))


def _find_commands(parser: ArgumentParser) -> dict[str, tuple[str, ArgumentParser]]:
    """Return the commands by name, each with its help and its parser."""
    [commands] = (each for each in parser._actions if isinstance(each, _SubParsersAction))  # noqa: SLF001 - as above
    helps = {each.dest: each.help or "" for each in commands._choices_actions}  # noqa: SLF001 - as above
    return {name: (helps[name], command) for name, command in commands.choices.items()}


def _name(action: Action) -> str:
    value = action.metavar or (
        action.dest.upper() if action.option_strings else f"{{{','.join(action.choices or ())}}}"
    )
    flags = ", ".join(f"\\fB{_escape(flag)}\\fR" for flag in action.option_strings)
    if action.nargs == 0:
        return flags
    return f"{flags} \\fI{_escape(str(value))}\\fR".strip()


def _expand(action: Action) -> str:
    text = action.help if action.help and action.help != SUPPRESS else ""
    return text % {"default": action.default}


def _form_sentence(text: str) -> str:
    """Return help as a sentence."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _list_settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _list_settings(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            shown = "unset" if default is None else json.dumps(default)
            yield from _list_item(f"\\fB{_escape(prefix + name)}\\fR ({_escape(shown)})", field.description or "")


def _list_item(name: str, text: str) -> Iterator[str]:
    yield from (".TP", name, _format(text))


def _format(text: str) -> str:
    """Return a paragraph, with `code` in bold."""
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _escape(" ".join(text.split())))


def _escape(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
