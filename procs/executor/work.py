"""The jobs: what an instruction does, blocking, in a thread. Each returns an Outcome.

Every one can be killed at any point and done again: what it finds on disk and in the engine
decides, and the claim (see claim.py) settles whether a start took effect.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from procs.executor import cgroup, gpus
from procs.executor.attempt import Attempt, Outcome
from procs.executor.claim import AlreadyRanError, Start, seal, settle, write_claim
from procs.executor.collect import Packed, TooLargeError, disk_use_bytes, pack
from procs.executor.core import Event, Step, Wait
from procs.executor.debug import Debug
from procs.executor.engine import (
    Engine,
    EngineAwayError,
    EngineRefusedError,
    NotThereError,
)
from procs.executor.final_report import Now, final_report
from procs.executor.layers import Layers, layer_name
from procs.executor.made import MADE, Made, write_made
from procs.executor.networks import NO_NETWORK, NetworkError, Networks, NetworkWaitError, Taken
from procs.executor.prepare import BLOBS, InputError, lay_out, missing
from procs.executor.quota import Grant
from procs.executor.run_record import RunRecord, parse_run
from procs.executor.sandbox import (
    GVISOR,
    LABEL_HOME,
    TASK_GID,
    TASK_UID,
    Image,
    Place,
    argv,
    container,
    environment,
    with_requirements,
)
from procs.executor.verdict import Loss, Stop, Verdict, judge
from shared import sentences
from shared.files import NO_ROOM, remove_tree, write_atomic
from shared.images import image_refusal
from shared.messages import TaskPhase
from shared.requirements import normalised
from shared.sentences import Said
from shared.taskdir import (
    ARCHIVE,
    CLAIM,
    INPUT,
    OUTPUT,
    REPORT,
    RUN,
    SECRETS,
    write_record,
)

log = logging.getLogger("executor")

STOP = "stop"  # in the attempt's directory: that we told it to end, and why
MOST_REFUSALS = 3  # a start that the engine refuses so often is the node's fault
MOST_PULLS = 3  # of one image for one attempt: someone may remove it each time
GRANT = "grant"  # what it was given: a later life may know less of the node's quota
MOST_RECORD_BYTES = 65536
MOST_FAILURES = 120  # its output itself may be what fills the disk: ten minutes, at DISK_RETRY_S
_ASIDE = tuple(f".{name}.new" for name in (GRANT, STOP, REPORT, ARCHIVE))  # a kill leaves these


_keeping = threading.Lock()  # its stop and its collection may both have the same to write


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_run(directory: Path) -> RunRecord:
    """The run record as far as it is written."""
    try:
        with (directory / RUN).open("rb") as file:
            return parse_run(file.read(MOST_RECORD_BYTES))
    except FileNotFoundError:
        return RunRecord(None, None, None)


def read_stop(directory: Path) -> Stop | None:
    try:
        return msgspec.json.decode((directory / STOP).read_bytes(), type=Stop)
    except FileNotFoundError:
        return None
    except ValueError as err:
        log.error("%s can't be read: %s", directory / STOP, err)
        return None


def read_grant(directory: Path) -> Grant | None:
    try:
        return msgspec.json.decode((directory / GRANT).read_bytes(), type=Grant)
    except (FileNotFoundError, ValueError):
        return None


def write_stop(directory: Path, stop: Stop) -> None:
    write_atomic(directory / STOP, msgspec.json.encode(stop))


class Work:
    """The jobs of one worker; safe in any thread, since each lane has one job at a time."""

    def __init__(
        self,
        engine: Engine,
        home: Path,
        keeper: Path,
        runtime: str,
        networks: Networks | None,
        debug: Debug,
        layers: Layers,
        allowed_images: tuple[str, ...],
    ) -> None:
        self._engine = engine
        self._networks, self._layers = networks, layers
        self._home = home
        self._keeper = keeper
        self._runtime = runtime
        self._debug = debug
        self._allowed_images = allowed_images
        self.node_id = ""
        self.engine_is_there = False  # as the loop knows it

    # -------------------------------------------------------------- prepare

    def prepare(self, attempt: Attempt) -> Outcome:
        """Image, inputs, claim, container."""
        granted = attempt.grant
        if granted is None:
            raise ValueError(f"{attempt.key.directory} was given no resources")
        image = self._image(attempt)
        if isinstance(image, Outcome):
            return image
        given = self._with_layer(attempt, image, granted)
        if isinstance(given, Outcome):
            return given
        return self._make_ready(attempt, image, given)

    def _make_ready(self, attempt: Attempt, image: Image, granted: Grant) -> Outcome:
        try:
            taken = self._gather(attempt)
            if isinstance(taken, Outcome):
                return taken
            granted = replace(granted, network=taken.name)
            lay_out(attempt.directory, attempt.spec, granted.disk_bytes)
            return self._make_container(attempt, image, granted, taken.resolvers)
        except InputError as err:
            return _failed(err.said)
        except EngineAwayError as err:  # a container of another id may be made yet
            return Outcome(Event.ENGINE_LOST, container_id="", detail=str(err))
        except EngineRefusedError as err:
            return self._not_made(attempt, err)
        except AlreadyRanError as err:
            return _failed(sentences.RAN_BEFORE.say(words=err))
        except OSError as err:
            return _not_laid_out(err)

    def _not_made(self, attempt: Attempt, err: EngineRefusedError) -> Outcome:
        gone = self._image(attempt)  # someone may have removed it meanwhile
        if isinstance(gone, Outcome):
            return gone
        if isinstance(err, NotThereError):  # removed, and come again for another task
            return _missed(attempt, err)
        return _failed(sentences.CONTAINER_NOT_MADE.say(words=err))

    def _with_layer(self, attempt: Attempt, image: Image, granted: Grant) -> Grant | Outcome:
        """What it was given, with its installed requirements."""
        if not attempt.spec.requirements:
            return granted
        try:
            lines = normalised(attempt.spec.requirements)
        except ValueError as err:  # refused at admission, unless its spec is older
            return _failed(sentences.REQUIREMENTS_NOT_INSTALLED.say(words=err))
        granted = replace(granted, layer=layer_name(lines, image.digest))
        try:
            if self._layers.hold(granted.layer, attempt.key):
                return granted
        except OSError as err:
            return _failed(sentences.REQUIREMENTS_NODE.say(words=err))
        return Outcome(
            Event.MISSED, Wait.LAYER, detail="waiting for its requirements",
            grant=granted, image_digest=image.reported, image=image,
        )  # fmt: skip

    def _image(self, attempt: Attempt) -> Image | Outcome:
        name = attempt.spec.image
        if image_refusal(name, self._allowed_images):  # the owner's word of now, not of then
            return _failed(sentences.IMAGE_DISALLOWED.say(image=name))
        try:
            return self._engine.image(name)
        except NotThereError as err:
            return _missed(attempt, err)
        except EngineRefusedError as err:
            return _failed(sentences.IMAGE_UNUSABLE.say(image=name, words=err))
        except EngineAwayError as err:
            return Outcome(Event.ENGINE_LOST, detail=str(err))

    def _gather(self, attempt: Attempt) -> Taken | Outcome:
        """What may still be on its way: its inputs, then its network."""
        if missing(attempt.directory, attempt.spec):
            return Outcome(Event.MISSED, Wait.INPUTS, detail="waiting for its input")
        if not attempt.spec.egress:
            return NO_NETWORK
        if self._networks is None:
            return _failed(sentences.EGRESS_TURNED_OFF.say())
        try:
            return self._networks.take(attempt.key)
        except NetworkWaitError as err:
            return Outcome(Event.MISSED, Wait.NETWORK, detail=str(err))
        except NetworkError as err:
            return _failed(err.said)

    def _make_container(
        self, attempt: Attempt, image: Image, granted: Grant, resolvers: tuple[str, ...]
    ) -> Outcome:
        words = argv(image, attempt.spec.command)
        if not words:
            return _failed(sentences.COMMAND_MISSING.say(image=attempt.spec.image))
        try:
            start = self._start(attempt, image, words, granted)
        except ValueError as err:  # the image adds its own: admission could not know
            return _failed(sentences.COMMAND_INVALID.say(fault=err))
        place = Place(attempt.key, attempt.directory, self._home, self.node_id, self._keeper)
        granted = replace(granted, image_digest=image.reported, pull_s=attempt.pull_s)
        write_atomic(attempt.directory / GRANT, msgspec.json.encode(granted))
        self._make_output(attempt.directory / OUTPUT)
        if attempt.may_have_container:  # of a start that was settled
            self._remove(attempt)
            cgroup.kill(attempt.container_id)  # an engine that died in a start forgets what it made
        body = container(place, image, granted, self._runtime, resolvers)
        made = Made(
            container_id=self._create(attempt, body, start),
            stop_signal=image.stop_signal or "SIGTERM",
        )
        write_made(attempt.directory, made)
        return Outcome(
            Event.PREPARED,
            grant=granted,
            container_id=made.container_id,
            image_digest=image.reported,
            stop_signal=made.stop_signal,
        )

    def _make_output(self, output: Path) -> None:
        """Empty: nothing that ran has written there yet."""
        remove_tree(output)
        output.mkdir(mode=0o755)
        output.chmod(0o755)
        _give_to_task(output)

    def _start(
        self, attempt: Attempt, image: Image, words: tuple[str, ...], granted: Grant
    ) -> Start:
        spec = attempt.spec
        secrets: dict[str, str] = {}
        if spec.secret_names:
            secrets = json.loads((attempt.directory / SECRETS).read_bytes())
        given = environment(image, spec.environment, secrets)
        return Start(
            argv=words,
            environment=with_requirements(given) if granted.layer else given,
            log_limit_bytes=spec.log_limit_bytes,
            file_limit_bytes=granted.disk_bytes,
        )

    def _create(self, attempt: Attempt, body: dict[str, object], start: Start) -> str:
        """Make the claim and the container; one of that name that never ran is replaced."""
        name = attempt.container_name
        write_claim(attempt.directory, start, TASK_UID, TASK_GID)
        try:
            return self._engine.create(name, body)
        except EngineRefusedError:
            if not settle(attempt.directory) or not self._is_ours(name):
                raise
            self._engine.remove(name)
        write_claim(attempt.directory, start, TASK_UID, TASK_GID)
        return self._engine.create(name, body)

    def _remove(self, attempt: Attempt) -> None:
        """What a create that nobody answered has made is known by its name alone."""
        if attempt.container_id or self._is_ours(attempt.container_name):
            self._engine.remove(attempt.container)

    def _is_ours(self, name: str) -> bool:
        """Another's of that name is left alone, whatever it is."""
        try:
            labels = self._engine.inspect(name)["Config"].get("Labels") or {}
        except NotThereError:
            return True
        return labels.get(LABEL_HOME) == str(self._home)

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
            return _failed(sentences.GPU_DRIVER_MISSING.say(words=why))
        if refused and attempt.refusals + 1 >= MOST_REFUSALS:
            return _failed(sentences.CONTAINER_NOT_STARTED.say(words=why))
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
        _keep_stop(attempt)
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
        _keep_stop(attempt)
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
            return _failed(sentences.KEEPER_SILENT.say())
        return Outcome(Event.NEVER_RAN, detail="will be started again", refused=True)

    # -------------------------------------------------------------- end

    def collect(self, attempt: Attempt) -> Outcome:
        """Pack the output and write the report. Nothing runs any more, or ever will."""
        directory = attempt.directory
        settle(directory)
        record = read_run(directory)
        _keep_stop(attempt)
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
        _keep_stop(attempt)
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
                self._remove(attempt)
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


def _failed(said: Said[TaskPhase]) -> Outcome:
    return Outcome(Event.PREPARE_FAILED, failure=said)


def _missed(attempt: Attempt, err: NotThereError) -> Outcome:
    if attempt.pulls >= MOST_PULLS:
        return _failed(sentences.IMAGE_VANISHED.say(image=attempt.spec.image, words=err))
    return Outcome(Event.MISSED, Wait.IMAGE, detail="waiting for its image")


def _not_laid_out(err: OSError) -> Outcome:
    if err.errno in NO_ROOM:  # a state of the node, not the task's end
        return Outcome(Event.NO_ROOM, detail=f"waiting for room on the disk: {err}")
    return _failed(sentences.DIRECTORIES_NOT_MADE.say(words=err))


def _keep_stop(attempt: Attempt) -> None:
    """Durable, if the disk has room; else a life after this one may have to decide again."""
    if attempt.stop is None:
        return
    with _keeping:
        try:
            if read_stop(attempt.directory) is None:
                write_stop(attempt.directory, attempt.stop)
        except OSError as err:
            log.error("%s: why it is stopped was not written: %s", attempt.key.directory, err)


def _give_to_task(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, TASK_UID, TASK_GID)
    else:
        path.chmod(0o777)  # not root: the home's own mode keeps others out
