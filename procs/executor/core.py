"""What becomes of an attempt: (step, event) -> (step, instruction). Pure: no clock, no I/O.

A step is finer than the contract's phase: `PHASES` says which phase each step shows. A pair
that is neither in MOVES nor in IGNORED is a fault of the program and raises.
"""

from enum import StrEnum

from shared.messages import TaskPhase


class Step(StrEnum):
    """Where the executor stands with an attempt."""

    WAITING = "waiting"  # accepted; its resources or the engine are not free yet
    PREPARING = "preparing"  # image, inputs, claim, container
    STARTING = "starting"  # a start was asked; the keeper has not spoken yet
    RUNNING = "running"
    STOPPING = "stopping"  # told to stop; grace, then harder signals
    COLLECTING = "collecting"  # it has ended; output is packed, the report written
    DONE = "done"  # the report is on disk; its container may still have to go
    CLEANED = "cleaned"  # nothing of it is left but its record
    RELEASED = "released"  # nobody wants it any more


class Event(StrEnum):
    """What happened, in the past tense."""

    GRANTED = "its resources were set aside"
    PREPARED = "its container was created"
    MISSED = "something that it needs was not here yet"
    ARRIVED = "what it waited for has come"
    PREPARE_FAILED = "it could not be prepared"
    NO_ROOM = "the disk was full"
    ENGINE_LOST = "the engine went away under a call"
    STARTED = "the keeper wrote started"
    NEVER_RAN = "its start was settled: it never ran"
    ENDED = "the keeper wrote ended or failed"
    LOST = "its process is gone without an end"
    STOP_WANTED = "it should end"
    COLLECTED = "its report was written"
    CLEANED = "its container and directories were removed"
    UNWANTED = "the master has its result"


class Wait(StrEnum):
    """What an attempt that is being prepared waits for; its detail says more."""

    IMAGE = "image"
    INPUTS = "inputs"
    LAYER = "layer"  # its requirements are being installed
    NETWORK = "network"


class Instruction(StrEnum):
    """What to do next, in the imperative."""

    PREPARE = "prepare"
    START = "start"
    STOP = "stop"
    COLLECT = "collect"
    CLEAN = "clean"


Move = tuple[Step, Instruction | None]

_ENDS: dict[Event, Move] = {
    Event.ENDED: (Step.COLLECTING, Instruction.COLLECT),
    Event.LOST: (Step.COLLECTING, Instruction.COLLECT),
}

MOVES: dict[tuple[Step, Event], Move] = {
    (Step.WAITING, Event.GRANTED): (Step.PREPARING, Instruction.PREPARE),
    (Step.WAITING, Event.STOP_WANTED): (Step.COLLECTING, Instruction.COLLECT),
    (Step.PREPARING, Event.PREPARED): (Step.STARTING, Instruction.START),
    (Step.PREPARING, Event.MISSED): (Step.PREPARING, None),
    (Step.PREPARING, Event.ARRIVED): (Step.PREPARING, Instruction.PREPARE),
    (Step.PREPARING, Event.PREPARE_FAILED): (Step.COLLECTING, Instruction.COLLECT),
    (Step.PREPARING, Event.NO_ROOM): (Step.WAITING, None),
    (Step.PREPARING, Event.ENGINE_LOST): (Step.WAITING, None),
    (Step.PREPARING, Event.STOP_WANTED): (Step.COLLECTING, Instruction.COLLECT),
    (Step.STARTING, Event.STARTED): (Step.RUNNING, None),
    (Step.STARTING, Event.NEVER_RAN): (Step.WAITING, None),
    (Step.STARTING, Event.PREPARE_FAILED): (Step.COLLECTING, Instruction.COLLECT),
    (Step.STARTING, Event.ENGINE_LOST): (Step.STARTING, None),
    (Step.STARTING, Event.STOP_WANTED): (Step.STOPPING, Instruction.STOP),
    (Step.RUNNING, Event.STOP_WANTED): (Step.STOPPING, Instruction.STOP),
    (Step.STOPPING, Event.STARTED): (Step.STOPPING, None),
    (Step.STOPPING, Event.NEVER_RAN): (Step.COLLECTING, Instruction.COLLECT),
    (Step.STOPPING, Event.PREPARE_FAILED): (Step.COLLECTING, Instruction.COLLECT),
    (Step.STOPPING, Event.ENGINE_LOST): (Step.STOPPING, None),
    (Step.COLLECTING, Event.COLLECTED): (Step.DONE, Instruction.CLEAN),
    (Step.DONE, Event.ENGINE_LOST): (Step.DONE, None),
    (Step.DONE, Event.CLEANED): (Step.CLEANED, None),
    (Step.CLEANED, Event.UNWANTED): (Step.RELEASED, None),
} | {
    (step, event): move
    for step in (Step.STARTING, Step.RUNNING, Step.STOPPING)
    for event, move in _ENDS.items()
}

_LATE = (Step.COLLECTING, Step.DONE, Step.CLEANED, Step.RELEASED)
IGNORED: frozenset[tuple[Step, Event]] = frozenset(
    [(step, Event.STOP_WANTED) for step in (Step.STOPPING, *_LATE)]  # it ends, or has ended
    + [(step, event) for step in _LATE for event in (Event.STARTED, Event.ENDED, Event.LOST)]
    + [  # the answer of a call that was under way when something else decided
        (step, event)
        for step in (Step.COLLECTING, Step.DONE, Step.CLEANED)
        for event in (
            Event.PREPARED,
            Event.PREPARE_FAILED,
            Event.MISSED,
            Event.NO_ROOM,
            Event.ENGINE_LOST,
            Event.NEVER_RAN,
        )
        if (step, event) not in MOVES
    ]
    + [(Step.RUNNING, Event.ENGINE_LOST)]
    + [(step, Event.UNWANTED) for step in Step if step is not Step.CLEANED]
)

PHASES: dict[Step, TaskPhase] = {
    Step.WAITING: TaskPhase.ACCEPTED,
    Step.PREPARING: TaskPhase.PREPARING,
    Step.STARTING: TaskPhase.PREPARING,
    Step.RUNNING: TaskPhase.RUNNING,
    Step.STOPPING: TaskPhase.RUNNING,
    Step.COLLECTING: TaskPhase.COLLECTING,
}  # from DONE on the report has the phase

ACTIVE = (Step.PREPARING, Step.STARTING, Step.RUNNING, Step.STOPPING)  # resources are set aside
ALIVE = (Step.STARTING, Step.RUNNING, Step.STOPPING)  # a process may be there


class IllegalMoveError(Exception):
    """An event came at a step where it can't happen; nothing was changed."""

    def __init__(self, task: str, step: Step, event: Event) -> None:
        super().__init__(f"task {task}: {event.name} ({event}) at {step.name}")


def move(task: str, step: Step, event: Event) -> Move:
    """The next step and what to do; at an ignored pair the same step and nothing."""
    if (step, event) in IGNORED:
        return step, None
    try:
        return MOVES[step, event]
    except KeyError:
        raise IllegalMoveError(task, step, event) from None


def diagram() -> str:
    """The table as lines of text, for the README."""
    lines = []
    for (step, event), (target, instruction) in MOVES.items():
        doing = f", then {instruction}" if instruction else ""
        lines.append(f"{step:<11}--{event.name.lower():->16}--> {target}{doing}")
    return "\n".join(lines)
