"""The protocol, the calls, the pidfds and the record: each at its real edge."""

import logging
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from procs.watchdog.core import Life, Program, Record
from procs.watchdog.events import EventsEnded, split
from procs.watchdog.pids import Pids, start_ticks
from procs.watchdog.record import RecordFile
from procs.watchdog.supervisord import Supervisord, SupervisordError, decode_answer, encode_call
from procs.watchdog.waker import leave_waker
from tests.fakes.supervised import supervised, until

LOG = logging.getLogger("test")
HEADER = b"ver:3.0 server:supervisor serial:21 pool:w poolserial:1 eventname:PROCESS_STATE len:%d\n"


def event(payload: bytes) -> bytes:
    return HEADER % len(payload) + payload


@pytest.mark.parametrize(
    ("buffer", "count", "rest"),
    [
        pytest.param(b"", 0, b"", id="nothing"),
        pytest.param(event(b"a:1 b:2"), 1, b"", id="one"),
        pytest.param(event(b"a:1") + event(b""), 2, b"", id="two, one empty"),
        pytest.param(event(b"a:1")[:-1], 0, event(b"a:1")[:-1], id="its end is missing"),
        pytest.param(HEADER[:20], 0, HEADER[:20], id="half a header"),
        pytest.param(event(b"x\ny") + b"ver", 1, b"ver", id="a newline in the payload"),
    ],
)
def test_events_are_taken_apart(buffer: bytes, count: int, rest: bytes) -> None:
    assert split(buffer) == (count, rest)


def test_what_is_no_event_ends_it() -> None:
    with pytest.raises(EventsEnded, match="not an event"):
        split(b"hello\n")


def test_a_call_escapes_what_xml_would_take_for_its_own() -> None:
    call = encode_call("supervisor.signalProcess", ("a<b&c:d", "KILL"))
    assert b"<string>a&lt;b&amp;c:d</string>" in call


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        pytest.param(b"<oops", "not XML", id="not XML"),
        pytest.param(b"<methodResponse/>", "no value", id="no value"),
        pytest.param(
            b"<methodResponse><fault><value><struct><member><name>faultString</name><value>"
            b"<string>BAD_NAME</string></value></member></struct></value></fault></methodResponse>",
            "BAD_NAME",
            id="a fault",
        ),
    ],
)
def test_an_answer_that_is_none_is_said(xml: bytes, said: str) -> None:
    with pytest.raises(SupervisordError, match=said):
        decode_answer(xml)


def test_the_two_calls_on_a_real_supervisord() -> None:
    with supervised(["vpn"]) as worker:
        door = Supervisord(f"unix://{worker.socket}")

        def runs() -> Program | None:
            try:
                (program,) = door.programs()
            except SupervisordError:
                return None  # it does not listen yet
            return program if program.state == "RUNNING" else None

        program = until(runs, "vpn runs")
        until(lambda: worker.pids().get("vpn"), "vpn has become itself")  # RUNNING is sooner
        assert (program.full_name, program.pid) == ("vpn:vpn", worker.pids()["vpn"])
        assert program.start_unix_s > 0
        door.kill(program)
        worker.back("vpn", program.pid)
        with pytest.raises(SupervisordError, match="BAD_NAME"):
            door.kill(Program(name="nobody", group="nobody", state="RUNNING"))


def test_a_supervisord_that_is_stopped_does_not_hold_us_up(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(home / "deaf.sock"))
        deaf.listen()
        with pytest.raises(SupervisordError, match="timed out"):
            Supervisord(f"unix://{home}/deaf.sock").programs()


def test_no_supervisord_and_no_unix_socket_are_said(home: Path) -> None:
    with pytest.raises(SupervisordError, match="No such file"):
        Supervisord(f"unix://{home}/none.sock").programs()
    with pytest.raises(SupervisordError, match="unix_http_server"):
        Supervisord("http://127.0.0.1:9001")


@contextmanager
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_death_is_seen_and_an_old_process_let_go() -> None:
    pids = Pids()
    with child() as first, child() as second:
        pids.hold({"a": first.pid, "b": second.pid})
        held = pids.descriptors()
        assert select.select(held, [], [], 0)[0] == []
        second.kill()
        ready = set(select.select(held, [], [])[0])
        assert set(pids.take_dead(ready)) == {"b"}
        assert set(pids.descriptors()) == set(held) - ready
        pids.hold({"a": second.pid})  # dead, not reaped: still there for the kernel
        assert len(pids.descriptors()) == 1
    pids.hold({"a": first.pid})
    assert pids.descriptors() == ()
    pids.close()


def test_a_process_is_known_by_when_it_began() -> None:
    with child() as process:
        assert start_ticks(process.pid) >= start_ticks(os.getpid())


def test_the_record_comes_back(tmp_path: Path) -> None:
    record = Record(supervisord="1:1", programs={"monitor@host": Life(pid=3, restarts=2)})
    file = RecordFile(tmp_path / "process.json", LOG)
    assert file.read() == Record()
    file.save(Record())
    file.save(record)
    file.close()
    again = RecordFile(tmp_path / "process.json", LOG)
    assert again.read() == record
    again.close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"programs": 3}'])
def test_a_broken_record_is_said_and_forgotten(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "process.json").write_bytes(content)
    file = RecordFile(tmp_path / "process.json", LOG)
    assert file.read() == Record()
    file.close()
    assert "is broken" in caplog.text


def test_a_record_that_cannot_be_written_is_said_and_not_fatal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = RecordFile(tmp_path / "gone" / "process.json", LOG)
    file.save(Record())
    file.close()
    assert "can't be written" in caplog.text


def connections_after_death(home: Path, not_within_s: float) -> list[int]:
    """How often somebody connected by the time the waker was gone."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(home / "door.sock"))
        door.listen()
        held = leave_waker(str(home / "door.sock"), not_within_s)
        waker = int(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1])
        assert select.select([door], [], [], 0.1)[0] == []  # while we live it is silent
        os.close(held)
        os.waitpid(waker, 0)
        found: list[int] = []
        while select.select([door], [], [], 0)[0]:
            door.accept()[0].close()
            found.append(1)
        return found


def test_the_waker_connects_when_the_watchdog_has_died(home: Path) -> None:
    assert len(connections_after_death(home, 0.0)) == 2


def test_the_waker_is_silent_after_a_short_life(home: Path) -> None:
    assert connections_after_death(home, 3600.0) == []
