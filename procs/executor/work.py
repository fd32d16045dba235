"""The jobs of an attempt that has its container: start, stop, look, collect, clean up. Each
blocks, in a thread, and returns an Outcome; how the container is made is in making.py.

Every one can be killed at any point and done again: what it finds on disk and in the engine
decides, and the claim (see claim.py) settles whether a start took effect.
"""

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from procs.executor import cgroup, gpus
from procs.executor.attempt import Attempt, Outcome
from procs.executor.claim import seal, settle
from procs.executor.collect import Packed, TooLargeError, disk_use_bytes, pack
from procs.executor.core import Event, Step
from procs.executor.debug import Debug
from procs.executor.engine import Engine, EngineAwayError, EngineRefusedError, NotThereError
from procs.executor.final_report import Now, final_report
from procs.executor.layers import Layers
from procs.executor.made import MADE
from procs.executor.making import remove
from procs.executor.notes import GRANT, STOP, keep_stop, read_run
from procs.executor.prepare import BLOBS
from procs.executor.run_record import RunRecord
from procs.executor.sandbox import GVISOR
from procs.executor.verdict import Loss, Verdict, judge
from shared import sentences
from shared.files import NO_ROOM, remove_tree
from shared.taskdir import ARCHIVE, CLAIM, INPUT, OUTPUT, REPORT, SECRETS, write_record

log = logging.getLogger("executor")

MOST_REFUSALS = 3  # a start that the engine refuses so often is the node's fault
MOST_FAILURES = 120  # its output itself may be what fills the disk: ten minutes, at DISK_RETRY_S
_ASIDE = tuple(f".{name}.new" for name in (GRANT, STOP, REPORT, ARCHIVE))  # a kill leaves these


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Work:
    """The jobs of one worker; safe in any thread, since each lane has one job at a time."""

    def __init__(self, engine: Engine, runtime: str, debug: Debug, layers: Layers) -> None:
        self._engine = engine
        self._runtime = runtime
        self._debug = debug
        self._layers = layers
        self.engine_is_there = False  # as the loop knows it

    # -------------------------------------------------------------- run

    def start(self, attempt: Attempt) -> Outcome:
        """Start it. Unanswered or refused: the claim says whether it ran."""
        try:
            self._engine.start(attempt.container)
        except (EngineAwayError, EngineRefusedError) as err:
            return self.settled(attempt, str(err), refused=isinstance(err, EngineRefusedError))
        return Outcome()

    def settled(self, attempt: Attempt, why: str, *, refused: bool) -> Outcome:
        """Take the claim back: it never ran. If a keeper has it, only the record can say more."""
        if not settle(attempt.directory):
            return Outcome()
        if refused and gpus.NO_DRIVER in why:
            return Outcome.not_prepared(sentences.GPU_DRIVER_MISSING.say(words=why))
        if refused and attempt.refusals + 1 >= MOST_REFUSALS:
            return Outcome.not_prepared(sentences.CONTAINER_NOT_STARTED.say(words=why))
        return Outcome(Event.NEVER_RAN, detail=f"will be started again: {why}", refused=refused)

    def seal(self, attempt: Attempt) -> Outcome:
        """It runs, and never will again: its secrets go, and the folder that it could write to
        outside its limit of disk."""
        try:
            (attempt.directory / SECRETS).unlink(missing_ok=True)
            seal(attempt.directory)
        except OSError as err:  # the task works against it; the end removes it
            log.warning("%s: its claim is not removed yet: %s", attempt.key.directory, err)
        return Outcome()

    def stop(self, attempt: Attempt) -> Outcome:
        """Put the decision on disk, then ask it to end with the image's own signal."""
        if attempt.step is not Step.STOPPING:  # it has ended meanwhile, and may be cleaned up
            return Outcome()
        if attempt.stop is not None and attempt.stop.is_hard:
            return self._stop_hard(attempt)
        keep_stop(attempt)
        if settle(attempt.directory):
            return Outcome(Event.NEVER_RAN)
        name = attempt.stop_signal
        try:
            name = name or self._engine.stop_signal(attempt.container)
        except (EngineAwayError, EngineRefusedError):
            name = "SIGTERM"
        self.signal(attempt, name)
        return Outcome(stop_signal=name)

    def _stop_hard(self, attempt: Attempt) -> Outcome:
        """It ran into its limit of disk: end it first. A life after this one finds the disk so."""
        outcome = self.hard_stop(attempt)
        keep_stop(attempt)
        return outcome

    def hard_stop(self, attempt: Attempt) -> Outcome:
        """The keeper kills all; through the kernel, which never hangs as an engine may."""
        if self.signal_keeper(attempt, signal.SIGPWR):
            return Outcome()
        return self.signal(attempt, "SIGPWR")

    def signal(self, attempt: Attempt, name: str) -> Outcome:
        """Through the engine or, where it is away or has lost the container, the kernel."""
        which = cgroup.number(name)
        if not self.engine_is_there and self.signal_keeper(attempt, which):
            return Outcome()
        try:
            self._engine.signal(attempt.container, name)
        except (EngineAwayError, EngineRefusedError) as err:
            if not self.signal_keeper(attempt, which):
                return Outcome(detail=f"{name} could not be sent: {err}")
        return Outcome()

    def signal_keeper(self, attempt: Attempt, which: int) -> bool:
        """In gVisor the host sees only the sandbox, which would end with the keeper in it."""
        return self._runtime != GVISOR and cgroup.signal_keeper(attempt.container_id, which)

    def kill(self, attempt: Attempt) -> Outcome:
        """What neither its signal nor the keeper's hard stop has ended."""
        if cgroup.processes(attempt.container_id):
            cgroup.kill(attempt.container_id)
            return Outcome()
        return self.signal(attempt, "SIGKILL")

    def autopsy(self, attempt: Attempt, *, present: bool) -> Outcome:
        """Its container does not run: what does that mean?"""
        if cgroup.processes(attempt.container_id):
            return Outcome()  # the engine is wrong: it runs
        record = read_run(attempt.directory)  # after the look: nothing is added any more
        if record.ended or record.failed_errno is not None:
            return Outcome(Event.ENDED)
        if record.started is None:
            return self._never_spoke(attempt)
        code, out_of_memory = 0, False
        if present:
            try:
                found = self._engine.exit_of(attempt.container)
                code, out_of_memory = found.code, found.out_of_memory
            except NotThereError:
                present = False
            except (EngineAwayError, EngineRefusedError):
                return Outcome()  # look again when it answers
        same_boot = record.started.boot_id in ("", boot_id())  # "": not to be had in gVisor
        loss = Loss(same_boot, attempt.engine_lapsed, present, code, out_of_memory)
        return Outcome(Event.LOST, loss=loss)

    def _never_spoke(self, attempt: Attempt) -> Outcome:
        """No process and no word of a keeper: its command was not begun, and now never will."""
        settle(attempt.directory)
        if attempt.refusals + 1 >= MOST_REFUSALS:
            return Outcome.not_prepared(sentences.KEEPER_SILENT.say())
        return Outcome(Event.NEVER_RAN, detail="will be started again", refused=True)

    # -------------------------------------------------------------- end

    def collect(self, attempt: Attempt) -> Outcome:
        """Pack the output and write the report. Nothing runs any more, or ever will."""
        directory = attempt.directory
        settle(directory)
        record = read_run(directory)
        keep_stop(attempt)
        cgroup.kill(attempt.container_id)
        (directory / SECRETS).unlink(missing_ok=True)
        seal(directory)  # it holds the secrets where no keeper came
        verdict = judge(
            record, attempt.stop, attempt.failure, attempt.loss,
            engine_lapsed=attempt.engine_lapsed,
        )  # fmt: skip
        packed, verdict = self._pack(attempt, record, verdict)
        return self._close(attempt, record, verdict, packed)

    def call_off(self, attempt: Attempt) -> Outcome:
        """The end of what never ran while a call for it still hangs in the engine. Its files are
        that call's; they go after it, with the rest."""
        keep_stop(attempt)
        never_ran = RunRecord(None, None, None)
        verdict = judge(never_ran, attempt.stop, attempt.failure, attempt.loss)
        return self._close(attempt, never_ran, verdict, Packed())

    def _close(
        self, attempt: Attempt, record: RunRecord, verdict: Verdict, packed: Packed
    ) -> Outcome:
        now = Now(time.time(), time.monotonic(), boot_id())
        report = final_report(attempt, record, verdict, packed, self._runtime, now)
        write_record(attempt.directory / REPORT, report)
        return Outcome(Event.COLLECTED, report=report)

    def _pack(
        self, attempt: Attempt, record: RunRecord, verdict: Verdict
    ) -> tuple[Packed, Verdict]:
        output, spec = attempt.directory / OUTPUT, attempt.spec
        if record.started is None:
            return Packed(), verdict
        limit = attempt.grant.disk_bytes if attempt.grant else 0
        try:
            if limit and (used := disk_use_bytes(output, limit)) >= limit:
                raise TooLargeError(sentences.OUT_OF_DISK.say(used=used, limit=limit))
            return pack(
                attempt.directory, output, spec.output_globs, spec.output_limit_bytes
            ), verdict
        except TooLargeError as err:
            return Packed(), Verdict.of(err.said, verdict.exit_code)
        except OSError as err:
            if err.errno in NO_ROOM and attempt.failures < MOST_FAILURES:
                raise  # once more, later
            said = sentences.OUTPUT_NOT_PACKED.say(words=err)
            return Packed(), Verdict.of(said, verdict.exit_code)

    def remove_leftover(self, container: str) -> Outcome:
        cgroup.kill(container)
        try:
            self._engine.remove(container)
        except (EngineAwayError, EngineRefusedError) as err:
            log.warning("container %s is not removed yet: %s", container[:12], err)
        return Outcome()

    def clean(self, attempt: Attempt) -> Outcome:
        """Container and directories go; log, archive and report stay."""
        cgroup.kill(attempt.container_id)
        try:
            if self._debug.wants(attempt):
                self._debug.keep(attempt, self._inspected(attempt))
            if attempt.may_have_container or attempt.container_id:
                remove(self._engine, attempt)
        except (EngineAwayError, EngineRefusedError) as err:
            return Outcome(Event.ENGINE_LOST, detail=f"its container is not removed yet: {err}")
        for name in (CLAIM, INPUT, OUTPUT, BLOBS, STOP, GRANT, SECRETS, MADE, *_ASIDE):
            remove_tree(attempt.directory / name)
        self._layers.release(attempt.key)
        return Outcome(Event.CLEANED)

    def _inspected(self, attempt: Attempt) -> dict[str, Any] | None:
        try:
            return self._engine.last_state(attempt.container)
        except NotThereError:
            return None

    def trim_debug(self) -> Outcome:
        self._debug.trim()
        return Outcome()


def guarded(job: Callable[[Attempt], Outcome], attempt: Attempt) -> Outcome:
    """A full or failing disk is no reason to end the process: it would only meet it again."""
    try:
        return job(attempt)
    except OSError as err:
        return Outcome(failed=f"{getattr(job, '__name__', 'a job')}: {err}")
