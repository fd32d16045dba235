"""`hivemind-worker pause`, `resume`, `drain`: against a web process, beside a worker that beats."""

import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from procs.cli.core import Drain, News
from shared.messages import LinkState, NodePhase, OwnerWant, TaskState, VpnState
from shared.owner_socket import NoAnswerError, RefusedError, ask_owner, owner_socket
from shared.settings import Settings, load
from tests.cli.test_main import STARTED, finish, read_until, start
from tests.fakes.bus_worker import link_state, running_task, short_home
from tests.web.conftest import Beating, Serving, free_port, wait_for


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as path:
        yield path
        for process in STARTED:
            process.kill()
            process.communicate()
        STARTED.clear()


@pytest.fixture
def settings(home: Path) -> Settings:
    return replace(load({"HIVEMIND_HOME": str(home)}, home), web_port=free_port())


@pytest.fixture
def beating(home: Path) -> Iterator[Beating]:
    made = Beating(home)
    yield made
    made.close()


@pytest.fixture
def serving(settings: Settings, beating: Beating) -> Iterator[Serving]:
    made = Serving(settings)
    wait_for(owner_socket(settings.home).exists, "the socket is there")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("command", "wish"),
    [("pause", "paused"), ("drain", "draining"), ("resume", "ready")],
)
def test_a_wish_is_kept_by_web(home: Path, serving: Serving, command: str, wish: str) -> None:
    code, out, err = finish(start(home, command))
    assert (code, err) == (0, "")
    assert out.startswith("the node")
    kept = (home / "lib" / "owner.json").read_text() if wish != "ready" else '"ready"'
    assert f'"{wish}"' in kept


def test_the_tunnels_key_is_asked_to_be_changed(
    home: Path, beating: Beating, serving: Serving
) -> None:

    def is_refused() -> bool:
        code, out, err = finish(start(home, "vpn", "rotate"))
        assert (code, out) == (1, "")
        return "there is no tunnel whose key could be changed" in err

    wait_for(is_refused, "web has heard of the tunnel, and there is none")
    beating.vpn = VpnState(at_s=0.0, public_key="k")

    def is_taken() -> bool:
        return finish(start(home, "vpn", "rotate"))[0] == 0

    wait_for(is_taken, "it is taken")
    assert '"tunnel_key_after_unix_s":1' in (home / "lib" / "owner.json").read_text()


def test_drain_waits_until_no_task_is_held(home: Path, beating: Beating, serving: Serving) -> None:
    beating.tasks = (running_task(),)
    beating.link = {"node_state": NodePhase.DRAINING, "undelivered_tasks": 1}
    draining = start(home, "drain", "--wait")
    read_until(draining, b"1 task left")
    beating.tasks = ()
    beating.link = {"node_state": NodePhase.DRAINING}
    code, out, err = finish(draining)
    assert code == 0, err
    assert "draining" in out
    assert "0 tasks left" in err


def test_a_drain_that_takes_too_long_or_is_called_off_fails(
    home: Path, beating: Beating, serving: Serving
) -> None:
    beating.tasks = (running_task(),)
    beating.link = {"node_state": NodePhase.DRAINING}
    code, _, err = finish(start(home, "drain", "--wait", "--timeout", "1"))
    assert code == 1
    assert "1 task left after 1 s" in err
    draining = start(home, "drain", "--wait")
    read_until(draining, b"1 task left")
    assert finish(start(home, "resume"))[0] == 0
    code, _, err = finish(draining)
    assert code == 1
    assert "called it off" in err


def test_without_a_worker_a_wish_is_exit_3_and_one_line(home: Path) -> None:
    code, _, err = finish(start(home, "pause"))
    assert code == 3
    assert "no worker runs in" in err
    assert len(err.splitlines()) == 1
    assert not (home / "lib" / "owner.json").exists()


def test_the_socket_is_for_the_services_group_and_comes_after_a_kill(
    home: Path, beating: Beating, settings: Settings
) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(owner_socket(home)))
    left.close()
    serving = Serving(settings)
    wait_for(lambda: answers(home), "web answers at its socket")
    assert stat.S_IMODE(owner_socket(home).stat().st_mode) == 0o660
    serving.close()


def answers(home: Path) -> bool:
    try:
        return bool(ask_owner(home, "/owner", {"wish": "paused"}))
    except NoAnswerError:
        return False


def test_what_web_refuses_is_said(home: Path, serving: Serving) -> None:
    with pytest.raises(RefusedError, match="wish must be"):
        ask_owner(home, "/owner", {"wish": "asleep"})


# ------------------------------------------------------------------ when a drain is over


def said(link: LinkState | None, tasks: TaskState | None) -> News:
    news = News()
    if link is not None:
        news.take("master_link", link, link.at_s)
    if tasks is not None:
        news.take("executor", tasks, tasks.at_s)
    return news


DRAINING = {"node_state": NodePhase.DRAINING}


@pytest.mark.parametrize(
    ("link", "tasks", "left"),
    [
        pytest.param(link_state(11.0, **DRAINING), TaskState(at_s=11.0), 0, id="all is done"),
        pytest.param(link_state(9.0, **DRAINING), TaskState(at_s=11.0), None, id="said before"),
        pytest.param(link_state(11.0), TaskState(at_s=11.0), None, id="not heard yet"),
        pytest.param(None, TaskState(at_s=11.0), None, id="link silent"),
        pytest.param(link_state(11.0, **DRAINING), None, None, id="executor silent"),
        pytest.param(
            link_state(11.0, **DRAINING), TaskState(at_s=11.0, synced=False), None, id="unsynced"
        ),
        pytest.param(
            link_state(11.0, **DRAINING, undelivered_tasks=2),
            TaskState(at_s=11.0),
            2,
            id="results are owed",
        ),
        pytest.param(
            link_state(11.0, **DRAINING),
            TaskState(at_s=11.0, tasks=(running_task(),)),
            1,
            id="a container is left",
        ),
    ],
)
def test_a_drain_is_over_when_nothing_is_held_nor_owed(
    link: LinkState | None, tasks: TaskState | None, left: int | None
) -> None:
    assert Drain(10.0).left(said(link, tasks), 11.5) == left


def test_silence_ends_no_drain() -> None:
    news = said(link_state(11.0, **DRAINING), TaskState(at_s=11.0))
    assert Drain(10.0).left(news, 30.0) is None


def test_a_wish_of_before_calls_nothing_off() -> None:
    news = News()
    news.take("web", OwnerWant(at_s=9.0, wish=NodePhase.READY), 9.0)
    assert not Drain(10.0).is_called_off(news)
    news.take("web", OwnerWant(at_s=10.5, wish=NodePhase.READY), 10.5)
    assert Drain(10.0).is_called_off(news)
