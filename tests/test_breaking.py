"""`.ci/check-breaking` in temporary repositories: the tag that it compares with, and the changes that it accepts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHAT = "protos/ollmbridge/v1/chat.proto"

if shutil.which("git") is None:
    pytest.skip("git is not on this machine", allow_module_level=True)


class Repository:
    """A clone with the protos, without the user's git settings."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            **{f"GIT_{who}_{what}": "nobody@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        }

    def run(self, *command):
        return subprocess.run(
            command, check=False, cwd=self.place, env=self.environ, capture_output=True, text=True, timeout=30
        )

    def git(self, *command):
        process = self.run("git", *command)
        assert process.returncode == 0, process.stderr

    def commit(self, tag=None):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "A change")
        if tag:
            self.git("tag", tag)

    def change(self, old, new):
        path = self.place / CHAT
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def clone(self, place, *options):
        self.git("clone", "--quiet", *options, self.place.as_uri(), str(place))
        return Repository(place)

    def check(self):
        process = self.run(".ci/check-breaking")
        return process.returncode, process.stdout + process.stderr


@pytest.fixture
def repository(tmp_path):
    """Return a repository of one commit with the present protos, without a tag."""
    place = tmp_path / "repository"
    for name in ("protos", ".ci"):
        shutil.copytree(ROOT / name, place / name)
    shutil.copy(ROOT / "buf.yaml", place)
    repository = Repository(place)
    repository.git("init", "--quiet")
    repository.commit()
    return repository


ADDED = ("string tool_call_id = 7;", "string tool_call_id = 7;\n  // A new one.\n  optional string new = 10;")
REMOVED = ("  // The assistant's refusal.\n  optional string refusal = 8;\n", "")
BREAKING = {
    "renumbered": (("optional string refusal = 8;", "optional string refusal = 18;"), 'field "8" with name "refusal"'),
    "removed": (REMOVED, 'field "8" with name "refusal"'),
    "renamed": (("optional string refusal = 8;", "optional string no = 8;"), 'name from "refusal" to "no"'),
    "of another type": (
        ("optional string refusal = 8;", "optional bytes refusal = 8;"),
        'type from "string" to "bytes"',
    ),
    "an enum's value removed": (
        ('    // "auto": the model decides.\n    MODE_AUTO = 2;\n', ""),
        'value "2" on enum "Mode" was deleted',
    ),
}


@pytest.mark.parametrize(("change", "message"), BREAKING.values(), ids=BREAKING)
def test_breaking_change_since_the_last_tag_fails(change, message, repository):
    repository.commit(tag="v1.0.0")
    repository.change(*change)
    for _ in ("before the commit", "after it"):
        code, out = repository.check()
        assert code != 0
        assert out.startswith("buf breaking against the tag v1.0.0 (")
        assert message in out
        repository.commit()


def test_added_field_passes(repository):
    repository.commit(tag="v1.0.0")
    repository.change(*ADDED)
    repository.commit()
    code, out = repository.check()
    assert (code, out.startswith("buf breaking against the tag v1.0.0 (")) == (0, True), out


def test_comparison_is_with_the_last_version_tag(repository):
    repository.commit(tag="v1.0.0")
    repository.change(*ADDED)
    repository.commit(tag="v1.1.0")
    repository.change("  // A new one.\n  optional string new = 10;", "")
    repository.commit(tag="nightly")
    code, out = repository.check()
    assert (code != 0, out.startswith("buf breaking against the tag v1.1.0 (")) == (True, True), out


def test_tagged_commit_is_compared_with_the_tag_before(repository):
    repository.commit(tag="v1.0.0")
    repository.change(*REMOVED)
    repository.commit(tag="v1.1.0")
    code, out = repository.check()
    assert (code != 0, out.startswith("buf breaking against the tag v1.0.0 (")) == (True, True), out


def test_comparison_without_a_tag_is_with_the_first_commit_and_the_output_says_so(repository):
    code, out = repository.check()
    assert (code, out.startswith("buf breaking against the first commit, since there is no version tag yet (")) == (
        0,
        True,
    )
    repository.change(*REMOVED)
    repository.commit()
    assert repository.check()[0] != 0


@pytest.mark.parametrize("tag", ["v1.0.0", None])
def test_shallow_clone_fetches_the_missing_commits(tag, repository, tmp_path):
    repository.commit(tag)
    repository.change(*REMOVED)
    repository.commit()
    code, out = repository.clone(tmp_path / "shallow", "--depth", "1").check()
    assert code != 0
    assert out.startswith(f"buf breaking against {f'the tag {tag}' if tag else 'the first commit'}")


def test_shallow_clone_that_cannot_fetch_fails_with_the_reason(repository, tmp_path):
    repository.commit(tag="v1.0.0")
    repository.commit()
    clone = repository.clone(tmp_path / "shallow", "--depth", "1", "--no-tags")
    repository.place.rename(tmp_path / "away")
    code, out = clone.check()
    assert code != 0
    assert "the protos were NOT compared" in out
