"""Tests of bridge/reload.py: the last good value of files, and log lines about bad ones."""

import datetime as dt
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme
from structlog.testing import capture_logs

from bridge.reload import ExpiredFileError, Reloaded, list_files, list_unusable, reload_now
from bridge.settings import SettingsError

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


MODES = {
    "readable by everybody": (0o644, r"number: the file .* must not be readable by everybody \(chmod o-r\)"),
    "writable by everybody": (0o622, r"number: the file .* must not be writable by everybody \(chmod o-w\)"),
}


@pytest.mark.parametrize(("mode", "message"), MODES.values(), ids=MODES)
def test_mode_of_a_secret_file_is_checked_at_the_start_and_at_each_read(path, mode, message):
    path.chmod(mode)
    with pytest.raises(SettingsError, match=message):
        reload_at_once(path, secret={"number"})
    path.chmod(0o640)
    number = reload_at_once(path, secret={"number"})
    path.write_text("22")
    path.chmod(mode)
    with capture_logs() as lines:
        assert [number.value for _ in range(2)] == [1, 1]
    assert summarize(lines) == [("warning", WARNING)]
    path.chmod(0o640)
    assert number.value == 22


def test_file_that_is_no_secret_may_be_read_and_not_written_by_everybody(path):
    path.chmod(0o644)
    assert reload_at_once(path).value == 1
    path.chmod(0o646)
    with pytest.raises(SettingsError, match="writable by everybody"):
        reload_at_once(path)


def test_file_of_lines_that_is_cut_in_place_may_be_half_written(path):
    path.write_text("123\n")
    number = reload_at_once(path, lines={"number"})
    path.write_text("12")
    with capture_logs() as lines:
        assert [number.value for _ in range(2)] == [123, 123]
    assert "expected a newline at the end" in lines[0]["error"]
    path.write_text("12\n")
    assert number.value == 12


def test_file_of_lines_that_replaces_another_is_whole(path, tmp_path):
    number = reload_at_once(path, lines={"number"})
    (tmp_path / "new").write_text("12")
    (tmp_path / "new").replace(path)
    assert number.value == 12


def test_value_does_not_outlive_its_file_for_ever(path, tmp_path):
    number = reload_at_once(path, grace_s=0.05)
    path.rename(tmp_path / "elsewhere")
    assert number.value == 1
    with capture_logs() as lines:
        wait_until_expired(number)
    assert ("error", "a file could not be used for too long, its last content no longer counts") in summarize(lines)
    (tmp_path / "elsewhere").rename(path)
    assert number.value == 1


def wait_until_expired(number: Reloaded) -> None:
    def read_until_expired() -> None:
        for _ in range(3000):
            assert number.value == 1
            threading.Event().wait(0.01)

    with pytest.raises(ExpiredFileError, match=r"^number can't be used for longer than reload_grace_s \(0\.05 s\)$"):
        read_until_expired()


def test_value_without_a_grace_outlives_its_file(path):
    number = reload_at_once(path)
    path.unlink()
    assert [number.value for _ in range(3)] == [1, 1, 1]


def test_settings_whose_files_cannot_be_used_are_listed(path):
    number = Reloaded({"listed": path}, parse_number, check_interval_s=0)
    assert "listed" not in list_unusable()
    path.write_text("two")
    assert "listed" in list_unusable()
    path.write_text("2")
    assert "listed" not in list_unusable()
    assert number.value == 2


def test_state_counts_reloads_and_failures_under_the_first_setting(path, tmp_path):
    (other := tmp_path / "other").write_bytes(b"")
    number = Reloaded({"counted": path, "other": other}, lambda content, _: parse_number(content), check_interval_s=0)
    (state,) = [state for state in list_files() if state.setting == "counted"]
    assert (state.reloads, state.failures, state.failure) == (0, 0, "")
    path.write_text("two")
    for _ in range(3):
        assert number.value == 1
    assert (number.state.reloads, number.state.failures) == (0, 1)
    assert "number: expected a number" in number.state.failure
    path.write_text("22")
    assert (number.state.reloads, number.state.failures, number.state.failure) == (1, 1, "")


def test_values_of_the_same_files_are_one_in_log_and_counts(path):
    values = [Reloaded({"shared": path}, parse, check_interval_s=0) for parse in [parse_number] * 3]
    for content, event in (("two", WARNING), ("23", "file reloaded"), ("4", "file reloaded"), ("four", WARNING)):
        path.write_text(content)
        with capture_logs() as lines:
            reload_now()
        assert [line["event"] for line in lines if line["setting"] == "shared"] == [event]
    assert [value.value for value in values] == [4, 4, 4]
    (state,) = [state for state in list_files() if state.setting == "shared"]
    assert (state.reloads, state.failures) == (2, 2)
    assert list_unusable().count("shared") == 1


def test_files_can_be_looked_at_before_their_time(path):
    number = Reloaded({"now": path}, parse_number, check_interval_s=3600)
    path.write_text("2")
    assert number.value == 1
    reload_now()
    assert number.value == 2


# Certificates

CA = trustme.CA()


def write_certificates(path, *days: float):
    """Write certificates that end in so many days."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    ends = [now + dt.timedelta(days=each) for each in days]
    path.write_bytes(b"".join(CA.issue_cert("a.test", not_after=end).cert_chain_pems[0].bytes() for end in ends))
    return [end.timestamp() for end in ends]


@pytest.mark.parametrize(("kind", "pick"), [("chain", min), ("authorities", max)])
def test_end_of_a_file_of_certificates_is_known(path, kind, pick):
    ends = write_certificates(path, 30, 20, 40)
    file = reload_at_once(path, bytes, certificates={"number": kind})
    assert file.state.validities["number"].end == pick(ends)
    (later,) = write_certificates(path, 90)
    with capture_logs() as lines:
        assert file.state.validities["number"].end == later
    expires = dt.datetime.fromtimestamp(later, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    expected = {"event": "file reloaded", "log_level": "info", "setting": "number", "number expires": expires}
    assert lines == [expected]


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (-1, [("error", "a certificate has expired: replace it")]),
        (13, [("warning", "a certificate expires soon: replace it")]),
        (15, []),
    ],
)
def test_certificate_that_ends_soon_is_warned_of_at_the_start_and_when_it_comes(path, days, expected):
    write_certificates(path, days)
    with capture_logs() as lines:
        file = reload_at_once(path, bytes, certificates={"number": "chain"})
    assert summarize(lines) == expected
    write_certificates(path, 100)
    assert file.value
    write_certificates(path, days)
    with capture_logs() as lines:
        assert file.value
    assert summarize(lines) == [("info", "file reloaded"), *expected]


def test_certificate_of_a_day_is_not_warned_of_while_most_of_its_life_is_left(path):
    now = dt.datetime.now(dt.UTC)
    issued = CA.issue_cert("a.test", not_before=now, not_after=now + dt.timedelta(days=1))
    path.write_bytes(issued.cert_chain_pems[0].bytes())
    with capture_logs() as lines:
        reload_at_once(path, bytes, certificates={"number": "chain"})
    assert lines == []


def test_file_whose_certificates_cannot_be_read_is_no_reason_to_refuse_it(path):
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert reload_at_once(path, bytes, certificates={"number": "chain"}).state.validities == {}


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
