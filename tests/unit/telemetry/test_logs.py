"""What a call's line says, and that every line of the process goes through the writer."""

import json
import logging
import os
import re
import sys
import traceback

import pytest
import structlog

from bridge.settings import LogSettings
from bridge.telemetry import CallRecord
from bridge.telemetry.logs import CallLog, open_log, render_call
from tests.unit.telemetry.records import make_record

KEY = "sk-" + "l" * 24
RECORD = make_record(
    method="CreateChatCompletion",
    duration_s=0.123456789,
    upstream_s=0.1,
    first_chunk_s=None,
    first_token_s=None,
    chunks=0,
    prompt_tokens=2,
    completion_tokens=None,
    translation_s=0.00012345678,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    caller="team-a",
)


@pytest.fixture
def log_to_file(tmp_path):
    """Return what opens a log to a file, acts, and returns the lines of the log."""

    def run(act, **settings) -> list[str]:
        path = tmp_path / "log"
        with path.open("wb") as file, open_log(LogSettings(**{"format": "json"} | settings), fd=file.fileno()) as log:
            act(log)
        return path.read_text(encoding="utf-8").split("\n")[:-1]

    return run


@pytest.fixture
def log_call(log_to_file):
    """Return what logs a call and returns the lines of the log."""
    return lambda record, **settings: log_to_file(lambda log: CallLog(log).end(record), **settings)


def test_call_is_one_line_with_the_records_fields_but_those_that_are_empty(log_call):
    (line,) = log_call(RECORD)
    fields = json.loads(line)
    assert fields.pop("timestamp").endswith("Z")
    assert fields == {
        "event": "call",
        "level": "info",
        "method": "CreateChatCompletion",
        "code": "OK",
        "model": "echo",
        "request_id": "r-1",
        "peer": "ipv4:127.0.0.1:1",
        "duration_s": 0.123457,
        "upstream_status": 200,
        "upstream_s": 0.1,
        "chunks": 0,
        "prompt_tokens": 2,
        "request_bytes": 27,
        "response_bytes": 177,
        "translation_s": 0.000123,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "caller": "team-a",
    }


TIMESTAMP = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
TEXTS = {"ASCII": "echo", "quotes": 'a"\\\n\t\x00', "other letters": "é\u2028😀", "no letter": "\ud800"}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_line_of_a_call_is_the_one_that_structlog_would_write(log_to_file, text):
    """So a call's line has the form of all others: the same order of keys, escapes and timestamp."""
    record = RECORD._replace(model=text)
    fields = {name: value for name, value in record._asdict().items() if value not in {None, ""}}
    fields |= {name: round(value, 6) for name, value in fields.items() if name.endswith("_s")}

    def log_twice(log):
        structlog.get_logger("ollm_bridge").info("call", **fields)
        CallLog(log).end(record)

    theirs, ours = (re.sub(TIMESTAMP, "then", line) for line in log_to_file(log_twice))
    assert ours == theirs
    assert "then" in ours


LEVELS = {"": "info", "UPSTREAM_NOT_FOUND": "info", "UPSTREAM_UNREACHABLE": "warning", "BRIDGE_FAULT": "error"}


@pytest.mark.parametrize(("reason", "level"), LEVELS.items(), ids=[name or "OK" for name in LEVELS])
def test_level_follows_the_reason(log_call, reason, level):
    record = RECORD._replace(code="INTERNAL", reason=reason)
    assert [json.loads(line)["level"] for line in log_call(record)] == [level]
    assert len(log_call(record, level="warning")) == (level != "info")
    assert len(log_call(record, level="error")) == (level == "error")


def catch(broken) -> BaseException:
    with pytest.raises(ValueError) as caught:
        broken()
    return caught.value


def test_fault_is_logged_with_its_type_and_place_and_without_its_text(log_call):
    def broken():
        local_secret = KEY
        raise ValueError(local_secret)

    (line,) = log_call(RECORD._replace(code="INTERNAL", reason="BRIDGE_FAULT", fault=catch(broken)))
    assert json.loads(line)["fault"] == "ValueError"
    assert "in broken" in json.loads(line)["stack"]
    assert KEY not in line


def test_stack_of_a_fault_is_bounded_and_ends_where_it_arose(log_call):
    def recurse(depth: int):
        return recurse(depth - 1) if depth % 2 else descend(depth - 1)

    def descend(depth: int):
        if depth < 0:
            raise ValueError
        return recurse(depth)

    (line,) = log_call(RECORD._replace(code="INTERNAL", fault=catch(lambda: recurse(200))))
    assert len(line) < 20_000
    assert "raise ValueError" in json.loads(line)["stack"].splitlines()[-1]


COLORS = re.compile(r"\x1b\[[0-9;]*m")


def test_line_for_a_terminal_begins_with_what_a_person_looks_for_and_has_all_other_fields(log_call):
    (line,) = log_call(RECORD, format="console")
    words = COLORS.sub("", line)
    assert re.match(rf"{TIMESTAMP} \[info +\] OK CreateChatCompletion echo 123 ms ", words)
    assert "\x1b[1mOK CreateChatCompletion echo 123 ms\x1b[0m \x1b[2mrequest_id\x1b[0m=\x1b[2m" in line
    for name, value in RECORD._asdict().items():
        if value not in {None, "", "OK"} and name not in {"method", "model", "duration_s"}:
            assert f" {name}=" in words, name


def test_line_for_a_terminal_has_the_reason_the_chunks_of_a_stream_and_the_detail(log_call):
    failed = make_record(code="ABORTED", reason="INCOMPLETE_COMPLETION", chunks=7, duration_s=2, detail="it ended")
    (line,) = log_call(failed, format="console")
    words = "] ABORTED INCOMPLETE_COMPLETION StreamChatCompletion echo 2000 ms 7 chunks: it ended "
    assert words in COLORS.sub("", line)


def test_line_for_a_terminal_does_not_control_it(log_call):
    (line,) = log_call(RECORD._replace(model="a\n\x1b]0;title\x07\x9b31m\u2028"), format="console")
    assert "\x1b]" not in line
    assert "\x9b" not in line
    assert "a\\n\\x1b]0;title\\x07\\x9b31m\\u2028" in line


def test_text_of_the_callers_is_one_line_whatever_it_holds(log_call):
    (line,) = log_call(RECORD._replace(model='a\n{"level":"error"}\u2028\x1b[31m'))
    assert json.loads(line)["model"] == 'a\n{"level":"error"}\u2028\x1b[31m'


def test_every_field_of_the_record_but_the_fault_is_a_field_of_the_line():
    record = CallRecord(*(1 for _ in CallRecord._fields))._replace(code="OK", fault=None)
    fields = json.loads(render_call(record))
    assert list(fields) == [name for name in CallRecord._fields if name != "fault"] + ["event", "level", "timestamp"]


def test_libraries_and_whatever_writes_to_stderr_go_through_the_writer(log_to_file):
    def speak(_log):
        logging.getLogger("grpc._cython.cygrpc").error("of grpc %s", "core")
        logging.getLogger("asyncio").info("below the level")
        structlog.get_logger("ollm_bridge").warning("a worker died", pid=7)
        print("to stderr", file=sys.stderr)
        traceback.print_exception(ValueError("of Python"))

    ours, theirs, *others = log_to_file(speak)
    fields = json.loads(ours)
    assert (fields["event"], fields["level"], fields["timestamp"][-1]) == ("of grpc core", "error", "Z")
    fields = json.loads(theirs)
    assert (fields["event"], fields["level"], fields["pid"]) == ("a worker died", "warning", 7)
    assert others == ["to stderr", "ValueError: of Python"]


def test_all_is_as_before_once_the_log_is_closed(log_to_file):
    def state():
        root = logging.getLogger()
        return sys.stderr, root.handlers[:], root.level, structlog.get_config()

    before = state()
    during = []
    log_to_file(lambda _log: during.append(state()))
    assert state() == before
    assert all(one is not other for one, other in zip(during[0], before, strict=True) if not isinstance(one, int))


def test_dropped_lines_are_counted_and_reported_once_the_log_is_read_again():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filler = 0
    try:
        while True:
            filler += os.write(writing, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    line = len(render_call(RECORD))
    with open_log(LogSettings(format="json"), fd=writing, queue_bytes_max=2 * line) as log:
        for _ in range(5):
            CallLog(log).end(RECORD)
        assert log.dropped_lines() == 3
        with os.fdopen(reading, "rb") as pipe:
            pipe.read(filler)
            events = [json.loads(pipe.readline()) for _ in range(3)]
    os.close(writing)
    assert [event["event"] for event in events] == ["call", "call", "log lines were dropped"]
    assert (events[2]["count"], events[2]["level"]) == (3, "warning")


def test_record_that_is_not_loggable_is_left_out():
    reading, writing = os.pipe()
    with open_log(LogSettings(format="json"), lambda record: record.name != "noisy", fd=writing):
        logging.getLogger("noisy").warning("one")
        logging.getLogger("other").warning("two")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert [json.loads(line)["event"] for line in pipe] == ["two"]
