"""The watchdog: an event listener of supervisord, and alone in talking to it.

Says what runs and what restarted; asks supervisord at a death, which wakes it from its
one-second tick; kills a process whose beat stops. It never starts or stops anything: that is
supervisord's.

Hears the beats of all processes. Publishes: process.state.
"""

import os
import signal
import sys
from collections.abc import Iterable

from procs.watchdog.core import (
    SHORT_LIFE_S,
    SILENT_TICKS,
    Program,
    Silence,
    next_record,
    process_info,
    too_often,
)
from procs.watchdog.events import Bell, take_stdout
from procs.watchdog.pids import Pids, born_s, since_s, start_ticks
from procs.watchdog.record import RecordFile
from procs.watchdog.supervisord import Supervisord, SupervisordError
from procs.watchdog.waker import leave_waker
from shared.bus import Beats
from shared.messages import ProcessState
from shared.service import Context, run
from shared.settings import EXIT_BAD_SETTINGS
from shared.topics import owned_by

NAME = "watchdog"
CAPABILITIES: frozenset[str] = frozenset()
LOOK_EVERY_S = 10.0  # events are the bell, this is for those that were lost
EVENTS_PER_BEAT = 6  # two restarts; each answer wakes supervisord, and a crash loop must not spin
OWN_ALARM_S = 15  # SIGALRM ends a watchdog whose own loop hangs


class Watchdog:
    """Ties supervisord, the kernel and the beats together. All judgement is in core.py."""

    def __init__(self, context: Context, supervisord: Supervisord, answers: int) -> None:
        self._context = context
        self._supervisord = supervisord
        self._bell = Bell(answers)
        self._pids = Pids()
        self._beats = Beats(context.bus)
        self._silence = Silence()
        self._file = RecordFile(context.home / "lib" / "process.json", context.log)
        self._record = self._file.read()
        self._programs: dict[str, Program] = {}
        self._events_left = EVENTS_PER_BEAT
        self._look_due_s = 0.0
        self._answers = True  # whether supervisord did, the last time
        self._alerts: tuple[str, ...] = ()
        self._waker = leave_waker(supervisord.path, SHORT_LIFE_S - since_s(born_s(os.getpid())))

    def beat(self, now_s: float) -> None:
        signal.alarm(OWN_ALARM_S)
        self._events_left = EVENTS_PER_BEAT
        if now_s >= self._look_due_s or not self._answers:
            self._look(now_s)
        self._judge_silence(now_s)
        self._publish(now_s)

    def wake(self, ready: set[int], now_s: float) -> None:
        news = self._bell.take() if self._bell.fileno() in ready else 0
        self._events_left -= news
        lives = self._pids.take_dead(ready).values()
        if news or any(lived_s >= SHORT_LIFE_S for lived_s in lives):
            self._look(now_s)
            self._publish(now_s)

    def descriptors(self) -> Iterable[int]:
        bell = (self._bell.fileno(),) if self._events_left > 0 else ()
        return (*bell, *self._pids.descriptors())

    def close(self) -> None:
        self._pids.close()
        self._file.close()
        os.close(self._waker)

    def _look(self, now_s: float) -> None:
        """Ask supervisord what runs; that we ask wakes it, too."""
        try:
            programs = self._supervisord.programs()
        except SupervisordError as err:
            if self._answers:
                self._context.log.warning("supervisord: %s", err)
            self._answers = False
            return
        self._answers, self._look_due_s = True, now_s + LOOK_EVERY_S
        self._programs = {program.name: program for program in programs}
        self._pids.hold({p.name: p.pid for p in programs if p.pid and p.name != NAME})
        parent = os.getppid()
        record = next_record(self._record, programs, f"{parent}:{start_ticks(parent)}", now_s)
        if record != self._record:
            self._record = record
            self._file.save(record)

    def _judge_silence(self, now_s: float) -> None:
        pids = {
            p.name: p.pid
            for p in self._programs.values()
            if p.pid and p.name != NAME and owned_by(p.name)
        }
        for name in self._silence.tick(now_s, self._beats.take(), pids):
            self._kill(self._programs[name])

    def _kill(self, program: Program) -> None:
        log = self._context.log
        log.error("%s (pid %d): no beat for %d s: killed", program.name, program.pid, SILENT_TICKS)
        try:
            self._supervisord.kill(program)
        except SupervisordError as err:
            log.error("%s could not be killed: %s", program.name, err)
            return
        self._silence.forgive(program.name)

    def _publish(self, now_s: float) -> None:
        """Unsynced while supervisord does not answer: then we live, and know nothing new."""
        lives = self._record.programs
        infos = tuple(process_info(p, lives[p.name]) for p in self._programs.values())
        alerts = too_often(self._record, now_s)
        for name in set(alerts) - set(self._alerts):
            self._context.log.warning("alert: %s restarts too often", name)
        self._alerts = alerts
        self._context.bus.publish(
            ProcessState(at_s=now_s, synced=self._answers, processes=infos, alerts=alerts)
        )


def main() -> int:
    answers = take_stdout()
    try:
        supervisord = Supervisord(os.environ.get("SUPERVISOR_SERVER_URL", ""))
    except SupervisordError as err:
        print(f"{NAME}: {err}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    return run(NAME, CAPABILITIES, (), lambda context: Watchdog(context, supervisord, answers))
