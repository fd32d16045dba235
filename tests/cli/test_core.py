"""What hivemind-worker says and writes."""

import configparser
import json
import time
from pathlib import Path

import pytest

from procs.cli.core import News, duration, render_supervisor, status_json, status_text
from shared.messages import Alert, Engine, HostLoad, LinkState, TaskState
from tests.fakes.bus_worker import (
    gpu_load,
    host_load,
    link_state,
    process_state,
    running_task,
    task_state,
)

TEMPLATE = (Path(__file__).parents[2] / "supervisor.conf").read_text()


def rendered(root: str, home: str) -> configparser.RawConfigParser:
    read = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    read.read_string(render_supervisor(TEMPLATE, Path(root), Path(home)))
    return read


def test_what_is_kept_lies_in_the_home() -> None:
    read = rendered("/opt/hive", "/srv/home")
    assert read["unix_http_server"]["file"] == "/srv/home/run/supervisor.sock"
    assert read["supervisorctl"]["serverurl"] == "unix:///srv/home/run/supervisor.sock"
    assert read["supervisord"]["pidfile"] == "/srv/home/run/supervisord.pid"
    assert read["supervisord"]["logfile"] == "/srv/home/log/supervisord.log"
    assert read["include"]["files"] == "/srv/home/conf.d/*.conf"


def test_the_programs_start_from_the_root() -> None:
    read = rendered("/opt/hive", "/srv/home")
    assert read["program:executor"]["command"] == "/bin/sh /opt/hive/procs/start.sh executor"
    assert read["program:executor"]["directory"] == "/opt/hive"
    assert "%(here)s" not in render_supervisor(TEMPLATE, Path("/a"), Path("/b"))


def test_spaces_and_percent_signs_in_a_path_are_its_own() -> None:
    read = rendered("/my hive", "/50%")
    assert read["program:web"]["command"] == "/bin/sh '/my hive/procs/start.sh' web"
    assert read["unix_http_server"]["file"] == "/50%%/run/supervisor.sock"


def healthy() -> News:
    news = News()
    news.take("master_link", link_state(1.0), 1.5)
    news.take("executor", task_state(1.0, running_task()), 1.5)
    news.take("monitor@host", host_load(1.0), 1.5)
    news.take("watchdog", process_state(1.0), 1.5)
    return news


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("attic (node-7f3a)  READY  trust level 2", id="node"),
        pytest.param("connected, last heartbeat", id="link"),
        pytest.param("3456 in all, 12 last", id="rewards"),
        pytest.param("Docker 20.10.24", id="engine"),
        pytest.param("CPU 42 %, memory 58 %", id="machine"),
        pytest.param("GiB free; of it tasks CPU 32 %, memory 3.0 GiB", id="the tasks' part"),
        pytest.param("executor       RUNNING   pid 101      restarts 1    since 1 h", id="process"),
        pytest.param("train.1              running 1 min  python:3.11-slim  CPU 63 %", id="task"),
        pytest.param("alerts     none", id="no alert"),
    ],
)
def test_status_says(said: str) -> None:
    assert said in status_text(healthy(), time.time())


def test_silence_is_said_not_guessed() -> None:
    news = News()
    news.take("master_link", link_state(1.0), 4.5)
    assert not news
    news.take("master_link", LinkState(at_s=4.0, synced=False), 4.5)
    assert news
    text = status_text(news, 0.0)
    for line in ("master_link is starting", "no word from executor", "no word from watchdog"):
        assert line in text
    assert json.loads(status_json(news))["node"] is None


def test_alerts_come_from_every_process() -> None:
    hot = Alert(rule="memory", subject="host", value=97.5, threshold=95, raised_unix_s=1)
    news = News()
    news.take("monitor@host", HostLoad(at_s=1.0, alerts=(hot,)), 1.0)
    news.take("watchdog", process_state(1.0, alerts=("vpn",)), 1.0)
    full = Alert(rule="image_disk", subject="host", value=96, threshold=95, raised_unix_s=1)
    state = TaskState(at_s=1.0, engine=Engine(detail="no socket"), alerts=(full,))
    news.take("executor", state, 1.0)
    assert news.alerts() == [
        "memory host: 97.5, threshold 95", "vpn restarts too often",
        "image_disk host: 96, threshold 95", "no Docker engine: no socket",
    ]  # fmt: skip
    assert json.loads(status_json(news))["alerts"] == news.alerts()


def test_gpus_are_told_with_what_they_report() -> None:
    news = healthy()
    news.take("monitor@gpu0", gpu_load(1.0), 1.5)
    lines = status_text(news, time.time()).splitlines()
    begin = lines.index("GPUs")
    assert lines[begin + 1 : begin + 4] == [
        "  0 NVIDIA H100  use 7 %, 1.5 of 80.0 GiB, 41 °C, 71 W",
        "  1  lost: it fell off the bus",
        "  2 NVIDIA L4  split by MIG: no task gets it",
    ]
    assert "  GPU-b: it fell off the bus" in lines


def test_what_a_stranger_wrote_reaches_no_terminal() -> None:
    news = News()
    news.take("master_link", link_state(1.0, detail="\x1b]0;evil\x07"), 1.0)
    assert "\x1b" not in status_text(news, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1.0, "0 s"), (59.0, "59 s"), (60.0, "1 min"), (7200.0, "2 h"), (200000.0, "2 d")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_whom_the_node_trusts_and_what_to_see_to_is_said() -> None:
    news = News()
    link = LinkState(
        at_s=1.0, authority_digest="abc", certificate_until_unix_s=172800.0, warnings=("look",)
    )
    news.take("master_link", link, 1.5)
    text = status_text(news, 0.0)
    assert "authority  abc, certificate good for 2 d\n" in text
    assert "alerts\n  look" in text
    assert "authority" not in status_text(healthy(), 0.0)
