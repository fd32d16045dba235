"""The web process over real HTTP, in this process and under a real supervisord."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from procs.web.history import look
from procs.web.logs import SKIPPED, Logs
from procs.web.owner import load_owner, save_owner
from shared.bus import Tap
from shared.history import Search
from shared.messages import NodePhase, OwnerWant, TaskPhase, VpnState
from shared.settings import Settings
from tests.fakes.bus_worker import running_task
from tests.fakes.history import Ended, write_history
from tests.fakes.keeper_log import KeeperLog
from tests.web.conftest import DEADLINE_S, Beating, Serving, free_port, wait_for

ROOT = Path(__file__).parents[2]
WRITE = {"X-HiveMind": "1", "Content-Type": "application/json"}


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def post(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    status, _, answer = ask(port, "POST", path, body, **WRITE)
    return status, answer


@contextmanager
def events(port: int) -> Iterator[Iterator[tuple[str, dict[str, object]]]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    connection.request("GET", "/events")
    answer = connection.getresponse()

    def read() -> Iterator[tuple[str, dict[str, object]]]:
        while line := answer.readline():
            name = line.decode().removeprefix("event: ").strip()
            yield name, json.loads(answer.readline().removeprefix(b"data: "))
            answer.readline()

    try:
        yield read()
    finally:
        answer.close()
        connection.close()


def owner_wants(home: Path, wish: NodePhase, *stopped: str) -> None:
    """Until web says so on the bus."""
    tap = Tap(home, ["owner.want"])
    deadline_s = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline_s:
            passed = tap.next(0.5)
            if passed is None or not isinstance(passed[1], OwnerWant) or not passed[1].synced:
                continue
            if (passed[1].wish, passed[1].stopped_tasks) == (wish, stopped):
                return
    finally:
        tap.close()
    raise AssertionError(f"web never wanted {wish} {stopped}")


def test_every_answer_carries_the_headers(serving: Serving) -> None:
    port = serving.settings.web_port
    for path in ("/monitor.html", "/static/page.js", "/static/page.css", "/healthz", "/gone"):
        _, headers, _ = ask(port, "GET", path)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src")
        assert "unsafe" not in headers["content-security-policy"]
    assert ask(port, "GET", "/", Host="evil.example")[0] == 421
    assert ask(port, "GET", "/")[1]["location"] == "/monitor.html"
    assert ask(port, "GET", "/static/../main.py")[0] == 404


def test_health_follows_the_executor(serving: Serving, beating: Beating) -> None:
    port = serving.settings.web_port
    wait_for(lambda: ask(port, "GET", "/healthz")[0] == 200, "healthy")
    beating.silent = True
    wait_for(lambda: ask(port, "GET", "/healthz")[0] == 503, "unhealthy")
    assert "task.state" in json.loads(ask(port, "GET", "/healthz")[2])["stale"]
    beating.silent = False
    wait_for(lambda: ask(port, "GET", "/healthz")[0] == 200, "healthy again")


def test_the_first_event_comes_at_once_and_the_next_with_news(
    serving: Serving, beating: Beating
) -> None:
    with events(serving.settings.web_port) as stream:
        name, state = next(stream)
        assert name == "state"
        assert state["owner"] == {
            "wish": "ready", "stopped_tasks": [], "tunnel_key_after_unix_s": 0.0,
        }  # fmt: skip
        beating.tasks = (running_task(),)
        tasks = next(s["tasks"] for n, s in stream if n == "state" and s["tasks"])
        assert isinstance(tasks, list)
        assert tasks[0]["directory"] == "train.1"


def test_a_page_that_is_closed_is_forgotten(serving: Serving) -> None:
    def streams() -> int:
        wanted = serving.settings.web_port
        return sum(
            f":{wanted:04X} " in line and line.split()[3] == "01"
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{wanted:04X}")
        )

    with events(serving.settings.web_port) as stream:
        next(stream)
        wait_for(lambda: serving.pages() == 1, "one page is open")
    wait_for(lambda: serving.pages() == 0, "no page is open")
    wait_for(lambda: streams() == 0, "no connection is left")


def test_logs_are_read_only_while_a_page_is_open(
    serving: Serving, beating: Beating, home: Path, task_log: Callable[[str], KeeperLog]
) -> None:
    task_log("train.1").write(b"hello\n")
    beating.tasks = (running_task(),)

    def readers() -> int:
        log = str(home / "tasks" / "train.1" / "log")
        return sum(_target(link) == log for link in Path("/proc/self/fd").iterdir()) - 1

    with events(serving.settings.web_port) as stream:
        said = next(body for name, body in stream if name == "log")
        assert said == {"task": "train.1", "fresh": True, "parts": [[1, "hello\n"]]}
        assert readers() == 1
    wait_for(lambda: readers() == 0, "the log is closed")


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_the_owners_wish_is_on_disk_and_on_the_bus(serving: Serving, home: Path) -> None:
    port = serving.settings.web_port
    assert post(port, "/owner", b'{"wish":"draining"}')[0] == 200
    assert load_owner(home / "lib" / "owner.json").wish is NodePhase.DRAINING
    owner_wants(home, NodePhase.DRAINING)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"wish":1}', b'{"wish":"degraded"}', b"\xff"]
)
def test_a_wish_that_is_none_changes_nothing(serving: Serving, home: Path, body: bytes) -> None:
    status, answer = post(serving.settings.web_port, "/owner", body)
    assert (status, load_owner(home / "lib" / "owner.json").wish) == (400, NodePhase.READY), answer


def test_get_changes_nothing(serving: Serving) -> None:
    assert ask(serving.settings.web_port, "GET", "/owner", None, **WRITE)[0] == 405
    assert ask(serving.settings.web_port, "POST", "/owner", b'{"wish":"paused"}')[0] == 403


def test_a_stopped_task_is_wanted_stopped_until_it_is_gone(
    serving: Serving, beating: Beating, home: Path
) -> None:
    port = serving.settings.web_port
    assert post(port, "/tasks/train.1/stop", b"{}")[0] == 409
    beating.tasks = (running_task(),)
    wait_for(lambda: post(port, "/tasks/train.1/stop", b"{}")[0] == 200, "the task is held")
    owner_wants(home, NodePhase.READY, "train.1")
    beating.tasks = ()
    owner_wants(home, NodePhase.READY)


@pytest.mark.parametrize(
    ("vpn", "status", "word"),
    [
        pytest.param(VpnState(at_s=0.0, synced=False), 409, "says nothing", id="not synced"),
        pytest.param(VpnState(at_s=0.0, detail="VPN=off"), 409, "VPN=off", id="no tunnel"),
        pytest.param(
            VpnState(at_s=0.0, public_key="k", key_is_owners=True), 409, "your own",
            id="the owner's",
        ),
        pytest.param(VpnState(at_s=0.0, public_key="k"), 200, "ready", id="the worker's"),
    ],
)  # fmt: skip
def test_the_tunnels_key_is_changed_where_it_can_be(
    serving: Serving, beating: Beating, home: Path, vpn: VpnState, status: int, word: str
) -> None:
    port, began_unix_s = serving.settings.web_port, time.time()
    beating.vpn = vpn

    def answers() -> bool:
        got, body = post(port, "/vpn/rotate", b"{}")
        return got == status and word in body.decode()

    wait_for(answers, word)
    after_unix_s = load_owner(home / "lib" / "owner.json").tunnel_key_after_unix_s
    assert (after_unix_s >= began_unix_s) is (status == 200)
    assert post(port, "/owner", b'{"wish":"paused"}')[0] == 200
    assert load_owner(home / "lib" / "owner.json").tunnel_key_after_unix_s == after_unix_s


def test_a_port_in_use_is_said_and_the_beat_goes_on(
    settings: Settings, beating: Beating, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        there = replace(settings, web_port=taken.getsockname()[1])
        with serving_on(there):
            wait_for(lambda: "Address already in use" in caplog.text, "it is said")
            owner_wants(home, NodePhase.READY)
            taken.close()
            wait_for(lambda: _answers(there.web_port), "it serves later")


def _answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/healthz")[0] in (200, 503)
    except OSError:
        return False


def test_off_loopback_the_token_is_needed(settings: Settings, beating: Beating) -> None:
    port = settings.web_port
    with serving_on(replace(settings, web_host="0.0.0.0", web_token="s3cret")):
        status, headers, _ = ask(port, "GET", "/monitor.html")
        assert (status, headers["www-authenticate"]) == (401, 'Basic realm="HiveMind Worker"')
        assert ask(port, "GET", "/monitor.html", Authorization="Bearer s3cret")[0] == 200


@contextmanager
def serving_on(settings: Settings) -> Iterator[Serving]:
    serving = Serving(settings)
    try:
        yield serving
    finally:
        serving.close()


# ------------------------------------------------------------------ files


def test_owner_json_survives_and_a_broken_one_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "owner.json"
    assert load_owner(path).wish is NodePhase.READY
    paused = type(load_owner(path))(wish=NodePhase.PAUSED, stopped_tasks=("a.1",))
    save_owner(path, paused)
    assert load_owner(path) == paused
    for broken in (b"{", b'{"wish":"degraded"}', b'{"wish":"x"}'):
        path.write_bytes(broken)
        assert load_owner(path).wish is NodePhase.READY
        assert (tmp_path / "owner.json.broken").read_bytes() == broken
        assert not path.exists()


@pytest.mark.parametrize("content", [None, b"", b"not a database, but long enough to look" * 9])
def test_no_history_is_no_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "executor.db"
    if content is not None:
        path.write_bytes(content)
    assert look(path, Search()) is None
    assert sorted(tmp_path.iterdir()) == ([] if content is None else [path])


def test_the_history_is_asked_for_in_pages(serving: Serving, home: Path) -> None:
    port = serving.settings.web_port
    assert ask(port, "GET", "/history")[::2] == (200, b"null")
    error = "\x1b[31mred\x1b[0m \u202e"
    write_history(
        home / "lib" / "executor.db",
        *(Ended(f"t-{n:02d}", TaskPhase.FAILED, 1000.0 + n, error=error) for n in range(60)),
        Ended("good", TaskPhase.SUCCEEDED, 1.0),
    )
    first = json.loads(ask(port, "GET", "/history?state=failed")[2])
    assert [task["task_id"] for task in first["tasks"]] == [f"t-{59 - n:02d}" for n in range(50)]
    assert first["tasks"][0]["error"] == "red \ufffd"
    path = f"/history?state=failed&after={first['next']}"
    second = json.loads(ask(port, "GET", path)[2])
    assert [task["task_id"] for task in second["tasks"]] == [f"t-{9 - n:02d}" for n in range(10)]
    assert second["next"] is None
    path = "/history?text=T-0%20fail&state=failed&state=cancelled&since=1003&until=1005"
    assert json.loads(ask(port, "GET", path)[2]) == {"tasks": [], "next": None}
    path = path.replace("%20fail", "")
    found = json.loads(ask(port, "GET", path)[2])["tasks"]
    assert [task["task_id"] for task in found] == ["t-05", "t-04"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("state=lost", b"state must be succeeded or failed or"),
        ("since=soon", b"since must be seconds since 1970"),
        ("until=nan", b"until must be seconds since 1970"),
        ("after=1", b"after must be what an answer named as next"),
        ("text=" + "a+" * 9, b"look for at most 8 words"),
    ],
)
def test_a_search_that_can_not_be_read_is_said(serving: Serving, query: str, said: bytes) -> None:
    status, _, body = ask(serving.settings.web_port, "GET", f"/history?{query}")
    assert status == 400
    assert body.startswith(said)


def test_a_long_log_is_followed_from_near_its_end(
    home: Path, task_log: Callable[[str], KeeperLog]
) -> None:
    log = task_log("a.1")
    log.write(b"x" * (5 * 2**20))
    log.write(b"end\n")
    logs = Logs(home)
    first = "".join(text for _, text in logs.look(["a.1"])["a.1"])
    assert 2**20 <= len(first) <= 2 * 2**20
    assert first.endswith("end\n")
    log.write(b"y" * (9 * 2**20))
    log.write(b"later\n")
    flood = "".join(text for _, text in logs.look(["a.1"])["a.1"])
    assert flood.endswith(SKIPPED)
    assert "".join(text for _, text in logs.look(["a.1"])["a.1"]).endswith("later\n")
    assert logs.look(["../../etc.1", "b.1"]) == {"b.1": []}
    logs.close()


def test_a_log_that_is_a_link_is_not_followed(home: Path) -> None:
    (home / "tasks" / "a.1").mkdir()
    (home / "tasks" / "a.1" / "log").symlink_to("/etc/passwd")
    logs = Logs(home)
    assert logs.look(["a.1"]) == {"a.1": []}
    logs.close()


# ------------------------------------------------------------------ under supervisord


SUPERVISOR = """
[supervisord]
nodaemon=true
logfile={home}/log/supervisord.log
pidfile={home}/run/supervisord.pid
[program:web]
command=/bin/sh {root}/procs/start.sh web
directory={root}
startsecs=0
autorestart=unexpected
exitcodes=2
stdout_logfile=NONE
stderr_logfile=NONE
"""


@pytest.mark.system
def test_under_supervisord_it_beats_serves_and_stops_with_an_open_page(home: Path) -> None:
    port, configuration = free_port(), home / "supervisor.conf"
    configuration.write_text(SUPERVISOR.format(home=home, root=ROOT))
    supervisord = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)],
        env=os.environ | {"HIVEMIND_HOME": str(home), "WEB_LISTEN": f"127.0.0.1:{port}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        owner_wants(home, NodePhase.READY)
        wait_for(lambda: "serving http" in (home / "log" / "web.log").read_text(), "it serves")
        with events(port) as stream:
            assert next(stream)[0] == "state"
            supervisord.send_signal(signal.SIGTERM)
            assert supervisord.wait(DEADLINE_S) == 0
        said = (home / "log" / "supervisord.log").read_text()
        assert "stopped: web (exit status 0)" in said
    finally:
        supervisord.kill()
        supervisord.wait()
