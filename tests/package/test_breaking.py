"""`.ci/check-breaking` in temporary repositories: the commit that it compares with, and the changes that it accepts."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.kit.processes import clean_environment, run_program

ROOT = Path(__file__).parents[2]
CHAT = "protos/ollmbridge/v1/chat.proto"
BASE = ".ci/breaking-base"
NAMED = "the commit in .ci/breaking-base, since there is no version tag yet"

if shutil.which("git") is None:
    pytest.skip("git is not on this machine", allow_module_level=True)


class Repository:
    """A clone with the protos, without the user's git settings."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environment = clean_environment() | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            **{f"GIT_{who}_{what}": "nobody@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        }

    def run(self, *command):
        return run_program(*command, cwd=self.place, environment=self.environment)

    def git(self, *command):
        code, _, err = self.run("git", *command)
        assert code == 0, err

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

    def name_base(self, commit):
        """Name a commit as the base of the comparison without a tag."""
        process = self.run("git", "rev-parse", commit)
        (self.place / BASE).write_text(f"# a comment\n{process.out}", encoding="ascii")

    def clone(self, place, *options):
        self.git("clone", "--quiet", *options, self.place.as_uri(), str(place))
        return Repository(place)

    def check(self):
        code, out, err = self.run(".ci/check-breaking")
        return code, out + err


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


ADDED = ("string tool_call_id = 7;", "string tool_call_id = 7;\n  // A new one.\n  optional string new = 100;")
REMOVED = ("  // The assistant's refusal.\n  optional string refusal = 8;\n", "")
RENUMBERED = ("optional string name = 5;", "optional string name = 15;")
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
    repository.change("  // A new one.\n  optional string new = 100;", "")
    repository.commit(tag="nightly")
    code, out = repository.check()
    assert (code != 0, out.startswith("buf breaking against the tag v1.1.0 (")) == (True, True), out


def test_tagged_commit_is_compared_with_the_tag_before(repository):
    repository.commit(tag="v1.0.0")
    repository.change(*REMOVED)
    repository.commit(tag="v1.1.0")
    code, out = repository.check()
    assert (code != 0, out.startswith("buf breaking against the tag v1.0.0 (")) == (True, True), out


def test_comparison_without_a_tag_is_with_the_named_commit_and_the_output_says_so(repository):
    repository.change(*REMOVED)
    repository.commit()
    repository.name_base("HEAD")
    code, out = repository.check()
    assert (code, out.startswith(f"buf breaking against {NAMED} (")) == (0, True), out
    repository.change(*RENUMBERED)
    repository.commit()
    assert repository.check()[0] != 0


def test_named_commit_counts_for_nothing_once_there_is_a_tag(repository):
    repository.commit(tag="v1.0.0")
    repository.change(*REMOVED)
    repository.commit()
    repository.name_base("HEAD")
    code, out = repository.check()
    assert (code != 0, out.startswith("buf breaking against the tag v1.0.0 (")) == (True, True), out


@pytest.mark.parametrize("named", ["0123456789012345678901234567890123456789", ""])
def test_base_that_is_no_commit_fails_with_the_reason(named, repository):
    (repository.place / BASE).write_text(f"# a comment\n{named}\n", encoding="ascii")
    code, out = repository.check()
    assert code != 0
    assert "the protos were NOT compared" in out
    assert BASE in out


@pytest.mark.parametrize("tag", ["v1.0.0", None])
def test_shallow_clone_fetches_the_missing_commits(tag, repository, tmp_path):
    repository.name_base("HEAD")
    repository.commit(tag)
    repository.change(*REMOVED)
    repository.commit()
    code, out = repository.clone(tmp_path / "shallow", "--depth", "1").check()
    assert code != 0
    assert out.startswith(f"buf breaking against {f'the tag {tag}' if tag else NAMED}")


def test_shallow_clone_that_cannot_fetch_fails_with_the_reason(repository, tmp_path):
    repository.commit(tag="v1.0.0")
    repository.commit()
    clone = repository.clone(tmp_path / "shallow", "--depth", "1", "--no-tags")
    repository.place.rename(tmp_path / "away")
    code, out = clone.check()
    assert code != 0
    assert "the protos were NOT compared" in out
