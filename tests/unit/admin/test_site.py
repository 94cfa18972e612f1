import asyncio
import json
import re
import threading

import httpx2
import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.provisional import domains

from bridge import __version__
from bridge.admin.site import Shown, Site, is_local_host, serve_admin
from bridge.settings import SettingsError, load
from bridge.telemetry.caller_counts import CallerCounts
from bridge.telemetry.failures import Failures
from tests.kit.processes import find_free_port
from tests.kit.waiting import WAIT_S
from tests.unit.admin.samples import (
    FAILURES,
    count_call,
    fetch,
    keep_failure,
    make_loaded,
    make_metrics,
    make_record,
    make_site,
    serve,
)

KEY = "sk-" + "k" * 24


def make_shown(is_serving):
    return Shown(Failures(), CallerCounts(), is_serving)


async def get(site: Site, path: str, *, method: str = "GET", host: str = "127.0.0.1:9464", headers=()):
    transport = httpx2.ASGITransport(app=site)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.request(method, path, headers={"host": host, **dict(headers)})


async def test_page_may_load_nothing_and_run_only_its_own_script():
    answer = await get(await make_site(), "/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[\w+/]+='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]+='", policy["style-src"])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", answer.text)
    assert not re.search(r"(src|href)=\"?(https?:)?//", answer.text)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", "application/json"),
        ("Application/JSON", "application/json"),
        ("text/html;q=0.8, application/json", "application/json"),
        ("application/json;q=0.9, */*;q=0.8", "application/json"),
        ("application/json; charset=utf-8 ;q=0.5", "application/json"),
        ("*/*", "text/html"),
        ("application/*", "text/html"),
        ("", "text/html"),
        ("application/json;q=0", "text/html"),
        ("application/json;q=nan", "text/html"),
        ("text/html, application/json;q=0.9", "text/html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
    ],
)
async def test_root_is_the_status_for_those_that_prefer_json(accept, kind):
    answer = await get(await make_site(), "/", headers={"accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert answer.headers["vary"] == "accept"
    assert kind == "text/html" or answer.json()["version"] == __version__


@given(st.text())
def test_any_accept_header_gets_a_page(accept):
    async def ask():
        transport = httpx2.ASGITransport(app=await make_site())
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/", headers={"accept": accept.encode()})

    assert asyncio.run(ask()).status_code == 200


async def test_health_is_200_and_serving_or_503_and_not_serving():
    state = True
    site = await make_site(is_serving=lambda: state)
    answer = await get(site, "/healthz")
    assert (answer.status_code, answer.text) == (200, "SERVING\n")
    assert (await get(site, "/status.json")).json()["serving"] is True
    state = False
    answer = await get(site, "/healthz")
    assert (answer.status_code, answer.text) == (503, "NOT_SERVING\n")
    assert (await get(site, "/status.json")).json()["serving"] is False


async def test_metrics_are_in_prometheus_format():
    answer = await get(await make_site(), "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert f'ollm_bridge_info{{version="{__version__}"}} 1.0' in answer.text


async def test_status_has_the_calls_and_the_failures():
    metrics, failures = make_metrics(), Failures()
    for fields in [{}] * 12 + FAILURES:
        count_call(metrics, make_record(**fields))
        keep_failure(failures, make_record(**fields))
    answer = await get(await make_site(metrics, failures), "/status.json")
    assert answer.headers["content-type"] == "application/json"
    status = answer.json()
    assert (status["version"], status["address"], status["calls_total"]) == (__version__, "127.0.0.1:50051", 20)
    assert [each["reason"] for each in status["failures"]] == [
        each.get("reason", "") for each in reversed(FAILURES[:-1])
    ]


async def test_status_has_every_setting_with_its_origin_and_no_secret():
    environ = {
        "OLLM_BRIDGE_UPSTREAM__API_KEY": KEY,
        "OLLM_BRIDGE_UPSTREAM__PROXY": "http://user:hunter2@proxy.example:1",
    }
    site = await make_site(loaded=load(flags={"calls_max": 3}, environ=environ))
    answer = await get(site, "/status.json")
    rows = {row["name"]: (row["value"], row["origin"]) for row in answer.json()["settings"]}
    assert rows["calls_max"] == ("3", "flag")
    assert rows["upstream.api_key"] == ("set, not shown", "environment")
    assert rows["upstream.proxy"] == ("set, not shown", "environment")
    assert rows["upstream.api_key_file"] == ("unset", "default")
    assert KEY not in answer.text
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/other", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/", 405),
        ("DELETE", "/metrics", 405),
        ("OPTIONS", "/status.json", 405),
    ],
)
async def test_other_paths_and_methods_are_refused(method, path, status):
    answer = await get(await make_site(), path, method=method)
    assert answer.status_code == status
    assert answer.headers["allow"] == "GET, HEAD"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/status.json", "/other"])
async def test_every_answer_closes_the_connection_and_names_no_library(path):
    headers = (await get(await make_site(), path)).headers
    assert (headers["connection"], headers["server"], headers["cache-control"]) == ("close", "ollm-bridge", "no-store")
    assert "date" not in headers


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/status.json"])
async def test_host_name_other_than_localhost_is_refused(path):
    site = await make_site(loaded=load(flags={}, environ={"OLLM_BRIDGE_UPSTREAM__BASE_URL": "https://g.example"}))
    answer = await get(site, path, host="rebound.example:9464")
    assert answer.status_code == 421
    assert answer.text.startswith("use an IP address or localhost to reach this port")
    assert "g.example" not in answer.text


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:9464", "127.0.0.1", "10.1.2.3:9464", "[::1]:9464", "[fe80::1]"]
)
def test_localhost_and_ip_addresses_are_local_hosts(host):
    assert is_local_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            ":80",
            "localhost.",
            "localhost.example",
            "notlocalhost",
            "127.0.0.1.example",
            "a.localhost",
            "localhost:x",
        ),
        *(
            "::1",
            "[127.0.0.1]",
            "[localhost]",
            "[::1",
            "0x7f.1",
            "2130706433",
            "127.1",
            "127.0.0.1@evil",
            "a, 127.0.0.1",
        ),
        *("localhost\n", " localhost", "user@localhost", "[::1]evil", "١٢٧.0.0.1"),
    ],
)
def test_other_names_and_odd_forms_are_no_local_hosts(host):
    assert not is_local_host(host)


@given(st.ip_addresses(), st.one_of(st.just(""), st.integers(0, 65535).map(":{}".format)))
def test_any_ip_address_with_or_without_a_port_is_a_local_host(address, port):
    assert is_local_host(f"[{address}]{port}" if address.version == 6 else f"{address}{port}")


@given(domains())
def test_no_domain_is_a_local_host(domain):
    assert not is_local_host(domain)
    assert not is_local_host(f"{domain}:80")


@given(st.text())
def test_any_text_is_judged_without_an_exception(text):
    assert is_local_host(text) in {True, False}


async def test_page_that_fails_says_so_and_its_log_line_has_no_content(monkeypatch):
    metrics = make_metrics()
    site = await make_site(metrics)
    monkeypatch.setattr(metrics, "page", lambda: int(KEY))
    with structlog.testing.capture_logs() as log:
        answer = await get(site, "/metrics")
    assert (answer.status_code, answer.text) == (500, "the bridge could not make this page; its log has more\n")
    assert log == [
        {"event": "admin page failed", "path": "/metrics", "fault": "ValueError", "log_level": "warning"},
    ]


async def test_metrics_are_made_once_for_all_who_ask_meanwhile(monkeypatch):
    metrics = make_metrics()
    site = await make_site(metrics)
    page, released, makings = metrics.page, threading.Event(), []

    def make():
        makings.append(1)
        assert released.wait(WAIT_S)
        return page()

    monkeypatch.setattr(metrics, "page", make)
    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(get(site, "/metrics")) for _ in range(100)]
        while len(makings) == 0:  # noqa: ASYNC110 - a thread announces nothing
            await asyncio.sleep(0)
        health = await get(site, "/healthz")
        released.set()
    assert health.text == "SERVING\n"
    assert {request.result().status_code for request in requests} == {200}
    assert len(makings) < 100
    assert (await get(site, "/metrics")).status_code == 200
    assert len(makings) > 1


# Over the wire


async def test_head_of_each_page_has_no_body():
    async with serve(await make_site()) as where:
        for path in ("/", "/healthz", "/metrics", "/status.json"):
            answer = await fetch(where, path, method="HEAD")
            assert (answer.status, answer.body) == (200, b"")
            assert int(answer.headers["content-length"]) > 0


async def test_admin_port_is_served_where_the_settings_say():
    state = True
    metrics = make_metrics()
    loaded = make_loaded(admin_listen=f"127.0.0.1:{find_free_port()}")  # that no system gives to others meanwhile
    async with serve_admin(loaded, metrics, make_shown(lambda: state), address="127.0.0.1:50051") as address:
        host, port = address.rsplit(":", 1)
        assert host == "127.0.0.1"
        assert (await fetch((host, port), "/healthz")).body == b"SERVING\n"
        state = False
        assert (await fetch((host, port), "/healthz")).status == 503
        status = json.loads((await fetch((host, port), "/status.json")).body)
        assert status["address"] == "127.0.0.1:50051"
    with pytest.raises(ConnectionRefusedError):
        await fetch((host, port), "/healthz")


async def test_admin_port_may_be_on_ipv6():
    async with serve_admin(
        make_loaded(admin_listen="[::1]:0"), make_metrics(), make_shown(lambda: True), address=""
    ) as address:
        host, port = address.rsplit(":", 1)
        assert host == "[::1]"
        assert (await fetch(("::1", port), "/healthz", host=address)).body == b"SERVING\n"


async def test_taken_port_is_a_settings_error():
    async with serve_admin(make_loaded(), make_metrics(), make_shown(lambda: True), address="") as address:
        with pytest.raises(SettingsError, match=f"^admin_listen: cannot listen at '{address}': Address already in use"):
            async with serve_admin(
                make_loaded(admin_listen=address), make_metrics(), make_shown(lambda: True), address=""
            ):
                pytest.fail("expected a SettingsError")


async def test_host_that_does_not_resolve_is_a_settings_error():
    loaded = make_loaded(admin_listen="no-such-host.invalid:0")
    with pytest.raises(SettingsError, match=r"^admin_listen: cannot listen at 'no-such-host.invalid:0': "):
        async with serve_admin(loaded, make_metrics(), make_shown(lambda: True), address=""):
            pytest.fail("expected a SettingsError")


async def test_empty_address_turns_the_admin_port_off():
    loaded = make_loaded(admin_listen="")
    async with serve_admin(loaded, make_metrics(), make_shown(lambda: True), address="") as address:
        assert address == ""
