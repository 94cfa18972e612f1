"""Tests of bridge/reload.py: the last good value of files, and log lines about bad ones."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from bridge.reload import Reloaded, api_key_reader
from bridge.settings import SettingsError, UpstreamSettings

WARNING = "a changed file can't be used, the last good one stays"


def parse_number(content: bytes) -> int:
    if not content.strip().isdigit():
        raise SettingsError("number: expected a number")
    return int(content)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "number").write_text("1")
    return tmp_path / "number"


def reload_at_once(path, parse=parse_number, **options) -> Reloaded:
    return Reloaded({"number": path}, parse, check_interval_s=0, **options)


def summarize(lines) -> list[tuple[str, str]]:
    return [(line["log_level"], line["event"]) for line in lines]


def test_value_follows_the_file(path):
    number = reload_at_once(path)
    assert number.value == 1
    path.write_text("23")
    with capture_logs() as lines:
        assert number.value == 23
        assert number.value == 23
    assert lines == [{"event": "file reloaded", "log_level": "info", "setting": "number"}]


def test_file_replaced_by_one_of_the_same_size_and_time_is_noticed(path, tmp_path):
    number = reload_at_once(path)
    state = path.stat()
    (tmp_path / "new").write_text("2")
    os.utime(tmp_path / "new", ns=(state.st_atime_ns, state.st_mtime_ns))
    (tmp_path / "new").replace(path)
    assert number.value == 2


def test_link_replaced_by_one_to_another_file_is_noticed(path, tmp_path):
    (tmp_path / "next").write_text("2")
    (link := tmp_path / "link").symlink_to(path)
    number = reload_at_once(link)
    (tmp_path / "other").symlink_to(tmp_path / "next")
    (tmp_path / "other").replace(link)
    assert number.value == 2


def test_unchanged_file_is_not_read_again(path):
    parsed = []
    number = reload_at_once(path, lambda content: parsed.append(content) or content)
    assert [number.value for _ in range(5)] == [b"1"] * 5
    assert parsed == [b"1"]


def test_changed_file_is_not_read_before_the_interval_has_passed(path):
    number = Reloaded({"number": path}, parse_number, check_interval_s=3600)
    path.write_text("2")
    assert number.value == 1


def test_content_that_cannot_be_used_leaves_the_last_good_value_and_is_logged_once_per_change(path):
    number = reload_at_once(path)
    path.write_text("two")
    with capture_logs() as lines:
        assert [number.value for _ in range(3)] == [1, 1, 1]
    assert lines == [
        {"event": WARNING, "log_level": "warning", "setting": "number", "error": "number: expected a number"}
    ]
    path.write_text("three")
    with capture_logs() as lines:
        assert [number.value for _ in range(3)] == [1, 1, 1]
    assert summarize(lines) == [("warning", WARNING)]
    path.write_text("4")
    with capture_logs() as lines:
        assert [number.value for _ in range(3)] == [4, 4, 4]
    assert summarize(lines) == [("info", "file reloaded")]


def test_missing_file_leaves_the_last_good_value_until_it_exists_again(path, tmp_path):
    number = reload_at_once(path)
    path.rename(tmp_path / "elsewhere")
    with capture_logs() as lines:
        assert [number.value for _ in range(3)] == [1, 1, 1]
    assert summarize(lines) == [("warning", WARNING)]
    assert "No such file" in lines[0]["error"]
    (tmp_path / "elsewhere").rename(path)
    with capture_logs() as lines:
        assert [number.value for _ in range(3)] == [1, 1, 1]
    assert summarize(lines) == [("info", "file reloaded")]


@pytest.mark.parametrize("error", [OSError("bad"), ValueError("bad"), SettingsError("number: bad")], ids=repr)
def test_failure_to_parse_is_reported_with_the_setting(path, error):
    def parse(content: bytes) -> bytes:
        if content != b"1":
            raise error
        return content

    number = reload_at_once(path, parse)
    path.write_text("22")
    with capture_logs() as lines:
        assert number.value == b"1"
    assert lines[0]["error"] == "number: bad"
    with pytest.raises(SettingsError, match=r"^number: bad$"):
        reload_at_once(path, parse)


def test_files_that_change_while_they_are_parsed_are_read_again(tmp_path):
    (certificate := tmp_path / "certificate").write_text("old")
    (key := tmp_path / "key").write_text("old")
    renewals = ["new"]

    def parse(*contents: bytes) -> tuple[bytes, ...]:
        if renewals:
            key.write_text(renewals.pop())
            certificate.write_text("new")
        return contents

    pair = Reloaded({"certificate": certificate, "key": key}, parse, check_interval_s=0)
    assert pair.value == (b"new", b"new")


def test_files_that_keep_changing_are_an_error_at_the_start(path):
    def parse(content: bytes) -> None:
        path.write_bytes(content + b"1")

    with pytest.raises(SettingsError, match="number: the files keep changing while they are read"):
        reload_at_once(path, parse)


def test_missing_file_is_an_error_at_the_start(tmp_path):
    with pytest.raises(SettingsError, match=r"number: cannot read the file /.*/nowhere: No such file or directory"):
        reload_at_once(tmp_path / "nowhere")
    with pytest.raises(SettingsError, match=r"number: cannot read the file /.*: Is a directory"):
        reload_at_once(tmp_path, secret={"number"})


def test_secret_in_the_place_of_the_path_is_not_in_the_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as caught:
        Reloaded({"number": type(tmp_path)("sk-ollm-a-sesame")}, parse_number)
    assert "sesame" not in str(caught.value)


def test_secret_file_that_everybody_can_read_is_an_error_at_the_start_and_a_warning_later(path):
    path.chmod(0o644)
    with pytest.raises(SettingsError, match=r"number: the file .* must not be readable by everybody \(chmod o-r\)"):
        reload_at_once(path, secret={"number"})
    path.chmod(0o640)
    number = reload_at_once(path, secret={"number"})
    path.write_text("22")
    path.chmod(0o644)
    with capture_logs() as lines:
        assert [number.value for _ in range(2)] == [22, 22]
    assert summarize(lines) == [
        ("info", "file reloaded"),
        ("warning", "a secret file is readable by everybody, the next start will refuse it"),
    ]


def test_threads_share_one_reload_and_no_other_thread_waits_for_it(path):
    is_parsing, may_end = threading.Event(), threading.Event()
    parsed = []

    def parse(content: bytes) -> bytes:
        parsed.append(content)
        if content != b"1":
            is_parsing.set()
            assert may_end.wait(30)
        return content

    number = reload_at_once(path, parse)
    path.write_text("22")
    with ThreadPoolExecutor() as pool:
        reloading = pool.submit(lambda: number.value)
        assert is_parsing.wait(30)
        assert [number.value for _ in range(3)] == [b"1"] * 3
        may_end.set()
        assert reloading.result(30) == b"22"
    assert number.value == b"22"
    assert parsed == [b"1", b"22"]


# The API key


def read_key(**upstream) -> str | None:
    read = api_key_reader(UpstreamSettings(**upstream))
    return read and read()


def write_key(path, content: bytes):
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_key_is_that_of_the_setting_or_the_file_or_none(tmp_path):
    assert read_key() is None
    assert read_key(api_key="sesame") == "sesame"
    assert read_key(api_key_file=write_key(tmp_path / "key", b"  sesame\n")) == "sesame"


KEYS = {"empty": b"\n", "two words": b"two words", "binary": b"\xff\xfe", "two lines": b"a\nb"}


@pytest.mark.parametrize("content", KEYS.values(), ids=KEYS)
def test_key_that_is_not_one_word_of_ascii_is_an_error_that_does_not_show_it(tmp_path, content):
    with pytest.raises(SettingsError) as caught:
        read_key(api_key_file=write_key(tmp_path / "key", content))
    message = "the key must be printable ASCII without spaces (value not shown)"
    assert str(caught.value) == f"upstream.api_key_file: {message}"
    with pytest.raises(SettingsError) as caught:
        read_key(api_key=content.decode("latin-1"))
    assert str(caught.value) == f"upstream.api_key: {message}"
