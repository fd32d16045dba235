"""One attempt that is held: its state in memory. All of it can be found again on disk."""

from dataclasses import dataclass, field
from pathlib import Path

from procs.executor.cgroup import Group, Use
from procs.executor.core import ACTIVE, ALIVE, PHASES, Event, Step, Wait
from procs.executor.gpus import named
from procs.executor.quota import Grant
from procs.executor.run_record import RunRecord
from procs.executor.sandbox import Image, container_name
from procs.executor.verdict import Loss, Stop
from shared.messages import HeldTask, PhaseAt, TaskPhase, TaskUse
from shared.sentences import Said
from shared.taskdir import Report, Spec, TaskKey
from shared.thresholds import Watches, alerts

SHOWN_ARGUMENTS, SHOWN_CHARACTERS = 8, 200  # of a command on the bus: it may be megabytes


@dataclass(frozen=True)
class Outcome:
    """What a job found: an event, or None, and what it learned. None fields change nothing."""

    event: Event | None = None
    waits_for: Wait | None = None  # with MISSED
    container_id: str | None = None
    image_digest: str | None = None
    image: Image | None = None
    stop_signal: str | None = None
    pull_s: float | None = None
    grant: Grant | None = None
    detail: str | None = None
    failure: Said[TaskPhase] | None = None
    loss: Loss | None = None
    report: Report | None = None
    refused: bool = False
    failed: str = ""  # the job could not be done; once more, later

    @classmethod
    def not_prepared(cls, said: Said[TaskPhase]) -> "Outcome":
        return cls(Event.PREPARE_FAILED, failure=said)


@dataclass
class Attempt:
    """Owned by the loop's thread; jobs read it. A job of its lane reads what the one before
    it found."""

    spec: Spec
    directory: Path
    step: Step = Step.WAITING
    grant: Grant | None = None
    phases: tuple[PhaseAt, ...] = ()
    detail: str = ""
    record: RunRecord = field(default_factory=lambda: RunRecord(None, None, None))
    stop: Stop | None = None
    failure: Said[TaskPhase] | None = None
    loss: Loss | None = None
    report: Report | None = None
    container_id: str = ""
    image_digest: str = ""
    image: Image | None = None  # for what has to be made for it, once it was looked at
    stop_signal: str = ""
    pull_s: float = 0.0
    pulls: int = 0
    may_have_container: bool = False
    refusals: int = 0
    failures: int = 0  # of jobs that could not be done
    engine_lapsed: bool = False
    waits_for: Wait | None = None
    retry_at_s: float = 0.0
    absent_since_s: float | None = None
    stop_stage: int = 0
    stop_due_s: float = 0.0
    lane_idle_since_s: float = 0.0
    began_s: float | None = None  # by our own clock, once its record says that it began
    record_due_s: float = 0.0  # when it is read without a bell
    memory_sum_pct: float = 0.0
    memory_samples: int = 0
    memory_peak_bytes: int = 0  # of the samples; the keeper knows better, if it lives to say so
    gpu_sum_pct: float = 0.0
    gpu_samples: int = 0
    group: Group | None = None  # its control group, once it was found
    keeper_pid: int = 0
    last_use: Use | None = None
    use: TaskUse | None = None
    watches: Watches = field(default_factory=dict)

    @property
    def key(self) -> TaskKey:
        return self.spec.key

    @property
    def container(self) -> str:
        """What the engine knows it by, also before its id is known to this life."""
        return self.container_id or self.container_name

    @property
    def container_name(self) -> str:
        return container_name(self.key, self.home)

    @property
    def home(self) -> Path:
        return self.directory.parents[1]

    @property
    def in_preparation(self) -> bool:
        """Does it keep the engine busy, or will it soon? What only waits does not."""
        return self.step in (Step.PREPARING, Step.STARTING) and self.waits_for is None

    def waits(self, what: Wait) -> bool:
        return self.step is Step.PREPARING and self.waits_for is what

    @property
    def phase(self) -> TaskPhase:
        return self.report.phase if self.report else PHASES[self.step]

    def enter(self, phase: TaskPhase, at_unix_s: float) -> None:
        """Note the phase in the history, once."""
        if all(p.phase is not phase for p in self.phases):
            self.phases = (*self.phases, PhaseAt(phase=phase, at_unix_s=at_unix_s))

    def entered_unix_s(self, phase: TaskPhase) -> float | None:
        return next((p.at_unix_s for p in self.phases if p.phase is phase), None)

    def held(self) -> HeldTask:
        """As `task.state` shows it."""
        return HeldTask(
            task_id=self.spec.task_id,
            attempt=self.spec.attempt,
            phase=self.phase,
            directory=self.key.directory,
            phases=self.phases,
            detail=self.detail,
            use=self.use,
            alerts=alerts(self.watches) if self.step in ALIVE else (),
            image=self.spec.image,
            command=tuple(word[:SHOWN_CHARACTERS] for word in self.spec.command[:SHOWN_ARGUMENTS]),
            gpus=named(self.grant.gpus) if self.grant and self.step in ACTIVE else (),
        )
