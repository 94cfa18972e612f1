"""The image, tested without a container engine.

The wheel is built and its content checked. Then the Dockerfile is rehearsed: every line is read, COPY copies the files
that .dockerignore allows, and RUN runs unchanged, in overlays on this machine's root with this Python at /usr/local,
where the base image has its own. The result is run as the image would be: its user, its environment, a read-only root,
no shell, a network of its own. A rehearsal can't check that the base exists, or its other content. `make package
WHAT=image` rehearses, with REHEARSE_IMAGE=1, since it takes half a minute.
"""

import json
import os
import re
import shutil
import sys
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pytest
import trustme

from bridge import __version__
from tests.kit.processes import run_program, start_program

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

ALLOWED = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]


def read_instructions():
    """Return each instruction of the Dockerfile as its keyword and the rest, with lines joined, without comments."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def find_only(keyword):
    (rest,) = (rest for each, rest in read_instructions() if each == keyword)
    return rest


# The wheel and the text of the Dockerfile


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(place)]
    succeed(command, cwd=ROOT)
    (path,) = place.iterdir()
    with zipfile.ZipFile(path) as file:
        yield file


def test_wheel_has_every_file_of_the_packages_and_nothing_else(wheel):
    sources = {"bridge": ROOT / "bridge", "ollmbridge": ROOT / "generated" / "ollmbridge"}
    expected = {
        f"{name}/{path.relative_to(top).as_posix()}"
        for name, top in sources.items()
        for path in top.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected.add(f"ollm_bridge-{__version__}.data/data/share/man/man1/ollm-bridge.1")
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    assert {"bridge/cli/main.py", "ollmbridge/v1/chat_completion_service_pb2_grpc.py"} <= expected


def test_wheel_has_the_command_and_the_licence(wheel):
    info = f"ollm_bridge-{__version__}.dist-info"
    assert "ollm-bridge = bridge.cli.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_builder_has_what_the_build_system_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]


def test_image_has_the_locked_packages_of_the_bridge_and_of_its_traces():
    locked = {
        name: set(re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE))
        for name in ("runtime", "image")
    }
    assert locked["runtime"] <= locked["image"]
    assert {each.partition("==")[0] for each in locked["image"] - locked["runtime"]} >= {
        "opentelemetry-sdk",
        "opentelemetry-exporter-otlp-proto-grpc",
    }
    assert "requirements/image.txt" in DOCKERFILE


def test_version_label_is_the_version():
    assert ("ARG", f"VERSION={__version__}") in read_instructions()


def test_base_is_pinned_by_build_arguments_in_both_stages():
    bases = [rest.split(" AS ")[0] for keyword, rest in read_instructions() if keyword == "FROM"]
    assert bases == ["python:${BASE_TAG}${BASE_DIGEST:+@${BASE_DIGEST}}"] * 2


def test_image_starts_without_a_shell_as_a_numbered_user():
    assert json.loads(find_only("ENTRYPOINT")) == ["ollm-bridge"]
    assert json.loads(find_only("CMD")) == ["serve"]
    assert json.loads(find_only("HEALTHCHECK").partition("CMD ")[2]) == ["ollm-bridge", "healthcheck"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", find_only("USER"))
    assert find_only("STOPSIGNAL") == "SIGTERM"


# Known vulnerabilities


def report_package(name, version, *vulnerabilities):
    return {"name": name, "version": version, "vulns": [{"id": each, "fix_versions": []} for each in vulnerabilities]}


def report_skip(name):
    return {"name": name, "skip_reason": "Dependency not found"}


DOWN = 'for each do [ "$each" != --dry-run ] || exit 0; done; echo "the network is down" >&2; exit 1'


@pytest.mark.parametrize(
    ("script", "code", "output"),
    [
        pytest.param("echo 'no hash' >&2; exit 1", 1, r"r.txt: no hash\n", id="unreadable"),
        pytest.param(DOWN, 0, r"NOT CHECKED .*: the network is down\n", id="no service"),
        pytest.param([report_package("a", "1")], 0, r"r.txt: 1 packages without a known vulnerability\n", id="clean"),
        pytest.param(
            [report_package("a", "1", "CVE-1"), report_package("b", "1")],
            1,
            r"a 1: CVE-1, fixed in no version yet\n",
            id="found",
        ),
        pytest.param(
            [report_skip("a")], 0, r"NOT CHECKED .*: of 1 packages the service knows none of them\n", id="unknown"
        ),
        pytest.param(
            [report_skip("a"), report_package("b", "1")],
            0,
            r"NOT CHECKED .* not a\nr.txt: 1 packages .*\n",
            id="in part",
        ),
        pytest.param(
            [report_skip("a"), report_package("b", "1", "CVE-1")], 1, r"b 1: CVE-1.*\nNOT CHECKED .* not a\n", id="both"
        ),
    ],
)
def test_only_a_known_vulnerability_fails_and_unchecked_packages_are_named(tmp_path, script, code, output):
    if not isinstance(script, str):
        report = json.dumps({"dependencies": script})
        cases = f"--dry-run) exit 0;; --output=*) printf '%s' '{report}' >${{each#--output=}}; exit {code};;"
        script = f"for each do case $each in {cases} esac; done"
    stub = tmp_path / "pip-audit"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    ended = run_program(tmp_path / "python", ROOT / ".ci" / "check-vulnerabilities", "r.txt")
    assert ended.code == code, ended.err
    assert re.fullmatch(output, ended.out), ended.out


# The rehearsal

CACHE = re.compile(r"--mount=type=cache,target=(\S+)\s+")
BASE_ENVIRON = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
NETWORK = (
    "PIP_",
    "SSL_CERT_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)  # a container engine passes these to its builder too

ENTER = """
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/root,workdir=$1/root.work" "$1/at"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/python,workdir=$1/python.work" "$1/at/usr/local"
for each in dev proc; do mount --rbind "/$each" "$1/at/$each"; done
for each in root tmp; do mount -t tmpfs tmpfs "$1/at/$each"; done
chmod 0700 "$1/at/root"
chmod 1777 "$1/at/tmp"
"""
CACHED = """
mkdir -p "$3" "$1/at$4"
mount --bind "$3" "$1/at$4"
"""
SEALED = """
for each in sh dash bash; do [ ! -e "$1/at/usr/bin/$each" ] || mount --bind /dev/null "$1/at/usr/bin/$each"; done
for each in "" /usr/local /root /tmp; do mount -o remount,ro "$1/at$each"; done
ip link set lo up
"""
GO = """
at=$1
shift 4
exec chroot "$at/at" "$@"
"""


@dataclass
class Stage:
    """A stage: its files over the machine's root and over its Python, and the values that its instructions set."""

    place: Path
    environ: dict[str, str] = field(default_factory=BASE_ENVIRON.copy)
    workdir: str = "/"
    user: str = "0:0"

    def enter(self, *command, cache="", sealed=False):
        """Return the command line that runs a command in the stage, in namespaces of its own."""
        script = "set -e" + ENTER + (CACHED if cache else "") + (SEALED if sealed else "") + GO
        spaces = ["--mount", "--propagation=private", *(["--net"] if sealed else [])]
        words = [self.place, sys.base_prefix, Path("~/.cache/pip").expanduser(), cache]
        return ["unshare", *spaces, "sh", "-c", script, "sh", *map(str, words), *command]

    def run(self, text):
        """Run the text of a RUN, as the builder does."""
        cache = CACHE.match(text)
        inherited = {name: value for name, value in os.environ.items() if name.upper().startswith(NETWORK)}
        environ = [f"{name}={value}" for name, value in (inherited | self.environ).items()]
        line = CACHE.sub("", text)
        command = ["env", "-i", "-C", self.workdir, *environ, "sh", "-c", line]
        succeed(self.enter(*command, cache=cache[1] if cache else ""))

    def wrap_command(self, *command, **environ):
        """Return the command line that runs a command in the stage as the image's user, in its environment."""
        user, _, group = self.user.partition(":")
        become = ["--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        set_ = [f"{name}={value}" for name, value in (self.environ | {"HOME": "/"} | environ).items()]
        return ["/usr/bin/setpriv", *become, "/usr/bin/env", "-i", "-C", self.workdir, *set_, *command]

    def start(self, *command, log, **environ):
        return start_program(*self.enter(*self.wrap_command(*command, **environ), sealed=True), log=log)

    def run_beside(self, process, *command, **environ):
        """Run a command in the namespaces of another one, as HEALTHCHECK and `exec` do."""
        spaces = ["nsenter", "--target", str(process.pid), "--mount", "--net", "--root"]
        return run_program(*spaces, *self.wrap_command(*command, **environ))

    def run_to_end(self, *command, **environ):
        return run_program(*self.enter(*self.wrap_command(*command, **environ), sealed=True))


def succeed(command, **options):
    code, out, err = run_program(*command, timeout_s=240, **options)
    assert code == 0, f"{command[-1]}\n{out}\n{err}"


def copy(sources, target):
    target.mkdir(parents=True, exist_ok=True)
    for source in sources:
        succeed(["cp", "-a", *([f"{source}/."] if source.is_dir() else [str(source)]), str(target)])


def copy_from_context(name, folder):
    """Copy a file or folder of the context that .dockerignore allows, and return the copy."""
    assert any(name.rstrip("/") == each or name.startswith(f"{each}/") for each in ALLOWED), f"{name} is ignored"
    source, target = ROOT / name, folder / name
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    return target


def rehearse(place):
    """Follow the Dockerfile, and return its last stage."""
    stages = {}
    stage = None
    for number, (keyword, rest) in enumerate(read_instructions()):
        match keyword:
            case "FROM":
                name = rest.partition(" AS ")[2] or "last"
                stage = stages[name] = Stage(place / name)
                for folder in ("at", "root", "root.work", "python", "python.work"):
                    (stage.place / folder).mkdir(parents=True)
                stage.run("ldconfig")  # as the base image has done for its Python
            case "WORKDIR":
                stage.workdir = rest
                stage.place.joinpath("root", rest.lstrip("/")).mkdir(parents=True)
            case "ENV":
                for name, value in re.findall(r"(\w+)=(\S+)", rest):
                    stage.environ[name] = Template(value).substitute(stage.environ)
            case "USER":
                stage.user = rest
            case "COPY":
                *words, target = rest.split()
                target = stage.place.joinpath("root", os.path.normpath(f"{stage.workdir}/{target}").lstrip("/"))
                if words[0].startswith("--from="):
                    other = stages[words.pop(0).removeprefix("--from=")].place
                    copy([other / "root" / word.lstrip("/") for word in words], target)
                else:
                    copy([copy_from_context(word, place / f"context{number}") for word in words], target)
            case "RUN":
                stage.run(rest)
            case "ARG" | "LABEL" | "EXPOSE" | "STOPSIGNAL" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
                pass
            case _:
                pytest.fail(f"the rehearsal does not know {keyword}")
    return stage


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    if os.environ.get("REHEARSE_IMAGE") != "1":
        pytest.skip("the rehearsal of the image takes half a minute: `make package WHAT=image`")
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("the rehearsal of the image needs to be root on Linux, to mount overlays")
    if sys.base_prefix == "/usr" or not Path(sys.base_prefix, "bin", "python").exists():
        pytest.skip(f"the rehearsal of the image needs a Python in a folder of its own, not {sys.base_prefix}")
    place = tmp_path_factory.mktemp("image")
    yield rehearse(place)
    shutil.rmtree(place)  # some 200 MB, which pytest would keep for three runs


pytestmark = pytest.mark.timeout(300)
START = [*json.loads(find_only("ENTRYPOINT")), *json.loads(find_only("CMD"))]
CHECK = json.loads(find_only("HEALTHCHECK").partition("CMD ")[2])


def test_image_prints_its_version(image):
    assert image.run_to_end("ollm-bridge", "--version") == (0, f"ollm-bridge {__version__}\n", "")


def test_image_runs_the_demo(image):
    code, out, err = image.run_to_end("python", "-m", "bridge", "demo")
    assert (code, err) == (0, "")
    assert out.count("\n$ ollm-bridge chat ") == 4


def test_image_without_tls_does_not_start_unless_a_setting_allows_it(image):
    code, out, err = image.run_to_end(*START)
    assert (code, out) == (2, "")
    assert "insecure" in err


@pytest.fixture
def _certificate(image):
    """Put a certificate and its key where a volume would be, as docs/operations.md says."""
    folder = image.place / "root" / "tls"
    folder.mkdir(exist_ok=True)
    certificate = trustme.CA().issue_cert("bridge.example")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    os.chown(folder / "tls.key", 65532, 65532)
    (folder / "tls.key").chmod(0o400)


INSECURE = {"OLLM_BRIDGE_INSECURE": "true"}
TRACED = {"OLLM_BRIDGE_TRACING__ENDPOINT": "http://127.0.0.1:4317"}
TLS = {"OLLM_BRIDGE_TLS__CERT_FILE": "/tls/tls.crt", "OLLM_BRIDGE_TLS__KEY_FILE": "/tls/tls.key"}


@pytest.mark.usefixtures("_certificate")
@pytest.mark.parametrize(
    "environ",
    [INSECURE, TLS, INSECURE | {"OLLM_BRIDGE_WORKERS": "2"}, INSECURE | TRACED],
    ids=["insecure", "tls", "workers", "traced"],
)
def test_image_starts_is_healthy_and_stops_on_the_signal(image, environ, tmp_path):
    with image.start(*START, log=tmp_path / "log", **environ) as program:
        assert program.address == "0.0.0.0:50051"
        check = image.run_beside(program, *CHECK)
        assert check.code == 0, check.err
    assert program.process.returncode == 0


def test_healthcheck_of_an_image_that_does_not_serve_fails(image):
    code, _, _ = image.run_to_end(*CHECK)
    assert code == 1


INSPECT = """
import importlib.util, json, os, pathlib, sys
def is_refused(path):
    try:
        pathlib.Path(path).write_text("")
    except OSError:
        return True
def is_stale(source):
    cached = pathlib.Path(importlib.util.cache_from_source(source))
    return not cached.exists() or cached.read_bytes()[4:8] != (1).to_bytes(4, "little")
tree = [path for path in pathlib.Path("/opt/ollm-bridge").rglob("*") if not path.is_symlink()]
print(json.dumps({
    "ids": [os.getuid(), os.getgid(), os.getgroups()],
    "installers": [name for name in ("pip", "ensurepip", "setuptools") if importlib.util.find_spec(name)],
    "commands": [path.name for path in pathlib.Path("/usr/local/bin").glob("pip*")],
    "uncompiled": [str(path) for path in tree if path.suffix == ".py" and path.parent.name != "bin" and is_stale(path)],
    "not root's alone": [str(path) for path in tree if path.stat().st_uid or path.stat().st_mode & 0o022],
    "writable": [path for path in ("/x", "/tmp/x", "/opt/ollm-bridge/x", "/usr/local/x") if not is_refused(path)],
    "unreadable": [str(path) for path in tree if not os.access(path, os.R_OK)],
}))
"""


@pytest.mark.parametrize("python", ["python", "/usr/local/bin/python"])
def test_image_is_read_only_compiled_and_without_installers(image, python):
    code, out, err = image.run_to_end(python, "-c", INSPECT)
    assert code == 0, err
    assert json.loads(out) == {
        "ids": [65532, 65532, []],
        "installers": [],
        "commands": [],
        "uncompiled": [],
        "not root's alone": [],
        "writable": [],
        "unreadable": [],
    }
