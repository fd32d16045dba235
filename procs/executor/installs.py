"""Requirements on their way into a layer: one installation for each, however many attempts wait
for it, in threads of their own and in a container of its own, with network.

It ends when nobody waits any more, when it takes too long, or when nothing moves. One that was
killed with its executor leaves a container and a folder: the next life removes them before its
first. Reads the files that the keeper writes; publishes nothing.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from procs.executor import cgroup, install_box
from procs.executor.attempt import Attempt
from procs.executor.claim import Start, seal, write_claim
from procs.executor.collect import TooLargeError, disk_use_bytes
from procs.executor.engine import (
    Engine,
    EngineAwayError,
    EngineRefusedError,
    NotThereError,
)
from procs.executor.install_box import CERT, INSTALLED, LINES, SCRATCH, PipSettings
from procs.executor.jobs import Jobs
from procs.executor.layers import LayerError, Layers
from procs.executor.networks import NetworkError, Networks, NetworkWaitError, Taken
from procs.executor.quota import Grant
from procs.executor.run_record import MOST_BYTES, RunRecord, parse_run
from procs.executor.sandbox import TASK_GID, TASK_UID, Image, Place
from shared import sentences
from shared.files import remove_tree
from shared.messages import TaskPhase
from shared.requirements import normalised
from shared.sentences import Said
from shared.taskdir import INPUT, LOG, OUTPUT, RUN, TaskKey
from shared.tasklog import LogReader

log = logging.getLogger("executor")

MOST_AT_ONCE = 2  # each may use a task's whole CPU, and the line
LOOK_S = 0.2
LIST_S = 5.0  # between looks into the engine's list, where the kernel shows no process
DISK_FACTOR, MOST_DISK_S = 20, 5.0  # a look at the disk may take a twentieth of the time
DYING_S, DYING_LOOK_S = 10.0, 0.01  # after SIGKILL
PRUNE_S = 60.0  # between looks, while the layers are past their size
MOST_LOST = 3  # containers of one installation that end without a word
AGAIN_S = 1.0  # before the same is asked for of an engine that was away
MOST_LINES = 200  # of pip's last words
HOST_CERTS = Path("/etc/ssl/certs/ca-certificates.crt")  # a bare image has none
SWEEP = "sweep"
LIMITS = (
    sentences.REQUIREMENTS_OUT_OF_MEMORY,
    sentences.REQUIREMENTS_OUT_OF_DISK,
    sentences.REQUIREMENTS_TOO_SLOW,
)
RUNNING_STATES = ("running", "paused", "restarting")


class _UnwantedError(Exception):
    """Nobody waits for it any more."""


class _LostError(Exception):
    """Its container is gone without a word."""


class _ImageGoneError(Exception):
    """Somebody removed the image: those who wait will miss it too, and have it pulled."""


class _FailedError(Exception):
    """It can't be installed."""

    def __init__(self, said: Said[TaskPhase]) -> None:
        super().__init__(said.text)
        self.said = said


@dataclass(frozen=True)
class Order:
    """A layer to make: for which image, within the limits of one of those who wait."""

    layer: str
    requirements: tuple[str, ...]  # as the attempt has them: reading many takes its time
    image: Image
    image_name: str
    grant: Grant


@dataclass
class _Install:
    """`unwanted` is set by the loop, `progress` by the installation's thread."""

    memory_bytes: int
    progress: str = "installing requirements"
    unwanted: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Installed:
    """How an installation ended. `refused`: why it can't be; `away`: ask again; `limited`: those
    who may have more than this grant can ask again too."""

    layer: str
    refused: Said[TaskPhase] | None = None
    away: bool = False
    limited: Grant | None = None

    def fails(self, grant: Grant | None) -> bool:
        """Is it the end of an attempt with this grant?"""
        if self.limited is None or grant is None:
            return True
        return (
            grant.memory_bytes <= self.limited.memory_bytes
            and grant.disk_bytes <= self.limited.disk_bytes
            and grant.cpus <= self.limited.cpus
        )


def orders(waiting: Iterable[Attempt]) -> dict[str, Order]:
    """What those who wait need, each within the limits of the one with the most memory."""
    found: dict[str, Order] = {}
    for attempt in waiting:
        grant, image = attempt.grant, attempt.image
        if grant is None or image is None:
            continue
        other = found.get(grant.layer)
        if other is None or other.grant.memory_bytes < grant.memory_bytes:
            found[grant.layer] = Order(
                layer=grant.layer,
                requirements=attempt.spec.requirements,
                image=image,
                image_name=attempt.spec.image,
                grant=replace(grant, layer=""),
            )
    return found


class Installs:
    """Belongs to the loop's thread."""

    def __init__(
        self,
        engine: Engine,
        layers: Layers,
        networks: Networks | None,
        home: Path,
        keeper: Path,
        runtime: str,
        settings: PipSettings,
    ) -> None:
        self._engine = engine
        self._layers = layers
        self._networks = networks
        self._home, self._keeper, self._runtime = home, keeper, runtime
        self._settings = settings
        self._jobs: Jobs[Installed | None] = Jobs(MOST_AT_ONCE, "install")
        self._under_way: dict[str, _Install] = {}
        self._away_until_s: dict[str, float] = {}
        self._containers: set[str] = set()  # the names of those that are in use
        self._left: set[str] = set()  # of those that are not removed yet: they have a network
        self._sweep_due, self._sweep_at_s = True, 0.0  # what an earlier life left
        self._sweep_again_s = AGAIN_S
        self._is_tidy = False

    def fileno(self) -> int:
        return self._jobs.fileno()

    def progress(self, layer: str) -> str:
        found = self._under_way.get(layer)
        return found.progress if found else ""

    def want(self, orders: Mapping[str, Order], now_s: float, *, engine_is_there: bool) -> None:
        """The layers that attempts wait for now. The installation of another ends, and one with
        more memory than any who waits was given: it may be another's by now."""
        for layer, install in self._under_way.items():
            order = orders.get(layer)
            if order is None or order.grant.memory_bytes < install.memory_bytes:
                install.unwanted.set()
        if not engine_is_there:
            return
        if self._sweep_due and now_s >= self._sweep_at_s and not self._jobs.is_busy(SWEEP):
            self._sweep_due = False
            self._jobs.submit(SWEEP, self._sweep)
        if not self._is_tidy:
            return
        self._away_until_s = {i: at for i, at in self._away_until_s.items() if at > now_s}
        for layer in orders.keys() - self._under_way.keys() - self._away_until_s.keys():
            order = orders[layer]
            install = self._under_way[layer] = _Install(order.grant.memory_bytes)
            self._jobs.submit(layer, partial(self._install, order, install))

    def results(self, now_s: float) -> Iterator[Installed]:
        """The installations that have ended."""
        for _, installed in self._jobs.results():
            if installed is None:
                self._sweep_at_s = now_s + self._sweep_again_s
                continue
            del self._under_way[installed.layer]
            if installed.away:
                self._away_until_s[installed.layer] = now_s + AGAIN_S
            yield installed

    def close(self) -> None:
        self._jobs.close()

    # -------------------------------------------------------------- in its threads

    def _sweep(self) -> None:
        """Remove the containers that no installation of this life uses, and layers past their
        size."""
        self._sweep_again_s, left = AGAIN_S, tuple(self._left)
        try:
            for found in self._engine.installing(str(self._home)):
                if found.name not in self._containers:
                    cgroup.kill(found.container_id)
                    self._engine.remove(found.container_id)
            for name in left:
                self._gone(name)
            if not self._is_tidy:
                self._layers.tidy()
                self._is_tidy = True
            if self._layers.prune():
                self._sweep_due, self._sweep_again_s = True, PRUNE_S
        except (EngineAwayError, EngineRefusedError, OSError) as err:
            log.warning("what earlier installations left is not removed yet: %s", err)
            self._sweep_due = True

    def _install(self, order: Order, install: _Install) -> Installed:
        try:
            self._make(replace(order, requirements=normalised(order.requirements)), install)
            if self._layers.prune():
                self._sweep_due = True
        except _ImageGoneError:
            return Installed(order.layer)
        except (_UnwantedError, EngineAwayError) as err:
            log.info("layer %s is not made now: %s", order.layer, err or "nobody waits for it")
            return Installed(order.layer, away=True)
        except _FailedError as err:
            limited = order.grant if err.said.sentence in LIMITS else None
            return Installed(order.layer, err.said, limited=limited)
        except LayerError as err:
            return Installed(order.layer, sentences.REQUIREMENTS_NOT_INSTALLED.say(words=err))
        except (EngineRefusedError, OSError) as err:
            return Installed(order.layer, sentences.REQUIREMENTS_NODE.say(words=err))
        return Installed(order.layer)

    def _make(self, order: Order, install: _Install) -> None:
        for _ in range(MOST_LOST):
            build = self._layers.begin(order.layer)
            try:
                self._run(order, install, build)
                installed = build / OUTPUT / INSTALLED
                self._layers.finish(build, installed, order.requirements, order.image.digest)
                return
            except _LostError:
                log.warning("layer %s: its container ended without a word", order.layer)
            finally:
                _discard(build)
        words = "their container ended without a word"
        raise _FailedError(sentences.REQUIREMENTS_NODE.say(words=words))

    def _run(self, order: Order, install: _Install, build: Path) -> None:
        """Install into `build`; back only when no process is left that could write there."""
        write_claim(build, self._start(build, order), TASK_UID, TASK_GID)
        name = f"hivemind-{build.name.lstrip('.')}"
        container_id = ""
        self._containers.add(name)
        try:
            network = self._network(name, install)
            container_id = self._create(name, self._body(order, build, network))
            self._begin(container_id)
            _Looks(self._engine, self._home, self._settings, order, install).follow(
                build, container_id
            )
        finally:
            self._clean_up(name, container_id)

    def _start(self, build: Path, order: Order) -> Start:
        with_cert = self._lay_out(build, order)
        try:
            return install_box.start(
                order.image, self._settings, order.grant, with_cert=with_cert
            )
        except ValueError as err:  # the image's own environment
            raise _FailedError(sentences.REQUIREMENTS_NOT_INSTALLED.say(words=err)) from err

    def _create(self, name: str, body: dict[str, object]) -> str:
        try:
            return self._engine.create(name, body)
        except NotThereError as err:
            raise _ImageGoneError from err

    def _begin(self, container_id: str) -> None:
        try:
            self._engine.start(container_id)
        except NotThereError as err:  # it, or its network
            raise _LostError from err

    def _network(self, name: str, install: _Install) -> Taken:
        if self._networks is None:
            raise _FailedError(sentences.EGRESS_TURNED_OFF.say())
        while True:
            try:
                return self._networks.take(name)
            except NetworkWaitError as err:
                install.progress = str(err)
            except NetworkError as err:
                raise _FailedError(err.said) from err
            while not self._networks.may_go(name, time.monotonic()):
                if install.unwanted.wait(LOOK_S):
                    raise _UnwantedError

    def _body(self, order: Order, build: Path, network: Taken) -> dict[str, object]:
        place = Place(TaskKey(order.layer, 1), build, self._home, "", self._keeper)
        return install_box.body(
            place, order.image, order.grant, self._runtime, order.layer, network
        )

    def _lay_out(self, build: Path, order: Order) -> bool:
        """What the container mounts; True: with certificates."""
        for folder in (INPUT, OUTPUT, f"{OUTPUT}/{INSTALLED}", f"{OUTPUT}/{SCRATCH}"):
            (build / folder).mkdir()
            (build / folder).chmod(0o755 if folder == INPUT else 0o777)
        _write(build / INPUT / LINES, "\n".join((*order.requirements, "")).encode())
        named = self._settings.cert
        cert = named or HOST_CERTS
        if not cert.is_file():
            if named:
                words = f"PIP_CERT={named} is no file"
                raise _FailedError(sentences.REQUIREMENTS_NODE.say(words=words))
            return False
        _write(build / INPUT / CERT, cert.read_bytes())
        return True

    def _clean_up(self, name: str, container_id: str) -> None:
        """Afterwards none of its processes is left."""
        try:
            _end(container_id)
            self._engine.remove(container_id or name)
        except (EngineAwayError, EngineRefusedError) as err:
            log.warning("container %s is not removed yet: %s", name, err)
            self._left.add(name)
            self._containers.discard(name)
            self._sweep_due = True
            if cgroup.processes(container_id):
                raise
        else:
            self._containers.discard(name)
            self._gone(name)

    def _gone(self, name: str) -> None:
        """Its container is, and so it is on its network no more."""
        self._left.discard(name)
        if self._networks is not None:
            self._networks.release(name)


class _Looks:
    """One container from its start to its end, looked at again and again."""

    def __init__(
        self, engine: Engine, home: Path, settings: PipSettings, order: Order, install: _Install
    ) -> None:
        self._engine, self._home, self._settings = engine, home, settings
        self._order, self._install = order, install
        self._lines: list[str] = [""]  # the last may not have ended yet
        self._began_s = self._moved_s = time.monotonic()
        self._was: tuple[int, int, int] = (0, 0, 0)
        self._disk_bytes = 0
        self._disk_due_s = self._list_due_s = 0.0

    def follow(self, build: Path, container_id: str) -> None:
        """Back when it has ended well."""
        reader = LogReader(build / LOG)
        try:
            while True:
                alive = self._is_alive(container_id)
                record = _read_run(build)  # after the look: nothing is added any more
                self._read(reader)
                if record.ended or record.failed_errno is not None:
                    break
                if not alive:
                    raise _LostError
                if record.started:
                    seal(build)
                self._judge(build, container_id, reader.next_sequence)
                if self._install.unwanted.wait(LOOK_S):
                    raise _UnwantedError
        finally:
            reader.close()
        order, lines = self._order, map(self._settings.without_passwords, self._lines)
        said = install_box.why(record, lines, order.image_name, order.grant)
        if said:
            raise _FailedError(said)
        self._judge_disk(build)

    def _is_alive(self, container_id: str) -> bool:
        if cgroup.processes(container_id):
            return True
        now_s = time.monotonic()
        if now_s < self._list_due_s:
            return True
        self._list_due_s = now_s + LIST_S
        seen = self._engine.installing(str(self._home))
        return any(s.container_id == container_id and s.state in RUNNING_STATES for s in seen)

    def _read(self, reader: LogReader) -> None:
        while records := reader.read():
            text = b"".join(record.data for record in records).decode(errors="replace")
            first, *more = text.split("\n")
            self._lines[-1] += first[:1000]
            self._lines = [*self._lines, *(line[:1000] for line in more)][-MOST_LINES:]
        said = [step for line in self._lines[:-1] if (step := install_box.progress(line))]
        if said:
            words = self._settings.without_passwords(said[-1])
            self._install.progress = f"installing requirements: {words}"

    def _judge(self, build: Path, container_id: str, words: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._disk_due_s:
            self._judge_disk(build)
            took_s = time.monotonic() - now_s
            self._disk_due_s = now_s + min(max(DISK_FACTOR * took_s, LOOK_S), MOST_DISK_S)
        group = cgroup.find(container_id)
        use = cgroup.use(group) if group else None
        now = (words, self._disk_bytes, use.cpu_ns // 10**9 if use else 0)
        if now != self._was:
            self._was, self._moved_s = now, now_s
        progress = self._install.progress
        if said := install_box.overdue(self._began_s, self._moved_s, now_s, progress):
            raise _FailedError(said)

    def _judge_disk(self, build: Path) -> None:
        limit = self._order.grant.disk_bytes
        try:
            used = self._disk_bytes = disk_use_bytes(build / OUTPUT, limit)
        except TooLargeError as err:
            said = sentences.REQUIREMENTS_NOT_INSTALLED.say(words="they have too many files")
            raise _FailedError(said) from err
        if used > limit:
            raise _FailedError(sentences.REQUIREMENTS_OUT_OF_DISK.say(used=used, limit=limit))


def _end(container_id: str) -> None:
    """Kill, and wait: what still ran could write into what is looked at next."""
    until_s = time.monotonic() + DYING_S
    while cgroup.processes(container_id):
        cgroup.kill(container_id)
        if time.monotonic() > until_s:
            raise EngineRefusedError("its processes do not end")
        time.sleep(DYING_LOOK_S)


def _discard(build: Path) -> None:
    try:
        remove_tree(build)
    except OSError as err:  # no reason to make the layer's own end another
        log.warning("%s stays until the next life: %s", build, err)


def _read_run(build: Path) -> RunRecord:
    with (build / RUN).open("rb") as file:
        return parse_run(file.read(MOST_BYTES))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)
