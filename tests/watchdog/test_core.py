"""Who is silent, what counts as a restart, what is an alert."""

import pytest

from procs.watchdog.core import (
    ALERT_RESTARTS,
    ALERT_WINDOW_S,
    LATE_TICK_S,
    SILENT_TICKS,
    Life,
    Program,
    Record,
    Silence,
    next_record,
    process_info,
    too_often,
)

PIDS = {"vpn": 7}


def running(name: str = "vpn", pid: int = 7, start_unix_s: float = 1000.0) -> Program:
    return Program(name=name, group=name, state="RUNNING", pid=pid, start_unix_s=start_unix_s)


def exited(exit_status: int = 0, spawn_error: str = "") -> Program:
    return Program(
        name="vpn", group="vpn", state="EXITED", stop_unix_s=2000.0,
        exit_status=exit_status, spawn_error=spawn_error,
    )  # fmt: skip


def ticks(silence: Silence, first_s: float, count: int, beats: dict[str, float]) -> tuple[str, ...]:
    """What the last of `count` ticks says, the same beats in each."""
    found: tuple[str, ...] = ()
    for second in range(count):
        found = silence.tick(first_s + second, beats, PIDS)
    return found


def test_a_process_that_is_silent_for_fifteen_ticks_is_to_be_killed() -> None:
    silence = Silence()
    silence.tick(99.0, {"vpn": 98.9}, PIDS)
    assert ticks(silence, 100.0, SILENT_TICKS - 1, {}) == ()
    assert ticks(silence, 100.0 + SILENT_TICKS - 1, 1, {}) == ("vpn",)


def test_one_that_never_spoke_is_silent_too() -> None:
    silence = Silence()
    assert ticks(silence, 100.0, SILENT_TICKS, {}) == ()
    assert ticks(silence, 100.0 + SILENT_TICKS, 1, {}) == ("vpn",)


def test_a_beat_starts_the_count_anew() -> None:
    silence = Silence()
    ticks(silence, 100.0, SILENT_TICKS, {})
    assert ticks(silence, 100.0 + SILENT_TICKS, 1, {"vpn": 115.0}) == ()
    assert ticks(silence, 101.0 + SILENT_TICKS, SILENT_TICKS - 1, {}) == ()


def test_an_old_message_that_comes_late_is_no_beat() -> None:
    silence = Silence()
    silence.tick(99.0, {"vpn": 98.9}, PIDS)
    assert ticks(silence, 100.0, SILENT_TICKS, {"vpn": 98.9}) == ("vpn",)


def test_a_late_tick_excuses_everybody() -> None:
    silence = Silence()
    ticks(silence, 100.0, SILENT_TICKS, {})
    woken_s = 100.0 + SILENT_TICKS - 1 + LATE_TICK_S + 0.1
    assert silence.tick(woken_s, {}, PIDS) == ()
    assert ticks(silence, woken_s + 1, SILENT_TICKS - 1, {}) == ()
    assert ticks(silence, woken_s + SILENT_TICKS, 1, {}) == ("vpn",)


def test_a_tick_that_is_just_not_late_excuses_nobody() -> None:
    silence = Silence()
    ticks(silence, 100.0, SILENT_TICKS, {})
    assert silence.tick(100.0 + SILENT_TICKS - 1 + LATE_TICK_S, {}, PIDS) == ("vpn",)


def test_a_new_process_has_its_own_count() -> None:
    silence = Silence()
    ticks(silence, 100.0, SILENT_TICKS, {})
    assert silence.tick(100.0 + SILENT_TICKS, {}, {"vpn": 8}) == ()


def test_a_program_that_is_down_is_not_counted() -> None:
    silence = Silence()
    ticks(silence, 100.0, SILENT_TICKS, {})
    silence.tick(100.0 + SILENT_TICKS, {}, {})
    assert silence.tick(101.0 + SILENT_TICKS, {}, PIDS) == ()


def test_one_that_was_killed_is_not_killed_again_at_once() -> None:
    silence = Silence()
    ticks(silence, 100.0, SILENT_TICKS + 1, {})
    silence.forgive("vpn")
    assert ticks(silence, 101.0 + SILENT_TICKS, SILENT_TICKS, {}) == ()


BEFORE = Record(supervisord="1:1", programs={"vpn": Life(pid=7, restarts=2, since_unix_s=900.0)})


@pytest.mark.parametrize(
    ("program", "supervisord", "restarts", "since_unix_s", "pid"),
    [
        pytest.param(running(), "1:1", 2, 1000.0, 7, id="the same process"),
        pytest.param(running(pid=8), "1:1", 3, 1000.0, 8, id="another process"),
        pytest.param(running(pid=8), "1:2", 2, 1000.0, 8, id="another supervisord"),
        pytest.param(exited(), "1:1", 2, 2000.0, 7, id="down: its pid is remembered"),
    ],
)
def test_a_restart_is_another_pid_under_the_same_supervisord(
    program: Program, supervisord: str, restarts: int, since_unix_s: float, pid: int
) -> None:
    life = next_record(BEFORE, [program], supervisord, 50.0).programs["vpn"]
    assert (life.restarts, life.since_unix_s, life.pid) == (restarts, since_unix_s, pid)


def test_down_and_up_again_is_one_restart() -> None:
    down = next_record(BEFORE, [exited(1)], "1:1", 50.0)
    up = next_record(down, [running(pid=8)], "1:1", 51.0)
    assert up.programs["vpn"].restarts == 3


def test_the_first_start_is_no_restart() -> None:
    assert next_record(Record(), [running()], "1:1", 50.0).programs["vpn"].restarts == 0


def test_a_program_that_is_gone_from_the_configuration_is_forgotten() -> None:
    assert set(next_record(BEFORE, [running("web")], "1:1", 50.0).programs) == {"web"}


@pytest.mark.parametrize(
    ("times", "now_s", "alert"),
    [
        pytest.param(range(ALERT_RESTARTS), 10.0, False, id="five"),
        pytest.param(range(ALERT_RESTARTS + 1), 10.0, True, id="six"),
        pytest.param(range(6), ALERT_WINDOW_S, False, id="the first of six just too long ago"),
        pytest.param(range(6), ALERT_WINDOW_S - 0.1, True, id="just within"),
    ],
)
def test_more_than_five_restarts_in_ten_minutes_are_an_alert(
    times: range, now_s: float, alert: bool
) -> None:
    life = Life(restarted_at_s=tuple(float(at) for at in times))
    record = Record(programs={"vpn": life, "web": Life()})
    assert too_often(record, now_s) == (("vpn",) if alert else ())


def test_old_restarts_leave_the_record_but_not_the_count() -> None:
    life = Life(pid=7, restarts=6, restarted_at_s=(0.0, 500.0))
    record = Record(supervisord="1:1", programs={"vpn": life})
    after = next_record(record, [running()], "1:1", ALERT_WINDOW_S).programs["vpn"]
    assert (after.restarts, after.restarted_at_s) == (6, (500.0,))


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        pytest.param(running(), "", id="running"),
        pytest.param(exited(2), "wrong settings: see its log", id="exit 2"),
        pytest.param(exited(1), "exit status 1", id="exit 1"),
        pytest.param(exited(0, "no such file"), "no such file", id="could not be started"),
    ],
)
def test_what_is_said_of_a_program(program: Program, detail: str) -> None:
    info = process_info(program, Life(restarts=4, since_unix_s=5.0))
    assert (info.name, info.restarts, info.since_unix_s) == ("vpn", 4, 5.0)
    assert (info.detail, info.pid) == (detail, program.pid)
