"""The table of moves: complete, and what it promises."""

import itertools

import pytest

from procs.executor.core import (
    ALIVE,
    IGNORED,
    MOVES,
    PHASES,
    Event,
    IllegalMoveError,
    Instruction,
    Step,
    diagram,
    move,
)

FAULTS = {  # pairs that only a fault of the program can bring
    (step, event)
    for step, event in itertools.product(Step, Event)
    if (step, event) not in MOVES and (step, event) not in IGNORED
}


def test_no_pair_is_both_a_move_and_ignored() -> None:
    assert not set(MOVES) & IGNORED


@pytest.mark.parametrize(("step", "event"), sorted(FAULTS))
def test_a_fault_changes_nothing_and_names_all_three(step: Step, event: Event) -> None:
    with pytest.raises(IllegalMoveError, match=f"task t.1: {event.name} .* at {step.name}"):
        move("t.1", step, event)


@pytest.mark.parametrize("step", list(Step))
def test_a_stop_is_understood_at_every_step(step: Step) -> None:
    target, instruction = move("t.1", step, Event.STOP_WANTED)
    assert target is step or instruction in (Instruction.STOP, Instruction.COLLECT)


@pytest.mark.parametrize("step", ALIVE)
@pytest.mark.parametrize("event", [Event.ENDED, Event.LOST])
def test_an_end_is_collected_from_every_step_where_a_process_may_be(
    step: Step, event: Event
) -> None:
    assert move("t.1", step, event) == (Step.COLLECTING, Instruction.COLLECT)


@pytest.mark.parametrize("event", [Event.NEVER_RAN, Event.PREPARE_FAILED])
def test_a_start_that_fails_under_a_stop_is_an_end(event: Event) -> None:
    assert move("t.1", Step.STOPPING, event) == (Step.COLLECTING, Instruction.COLLECT)


def test_it_is_started_only_after_it_was_prepared() -> None:
    starts = [pair for pair, (_, instruction) in MOVES.items() if instruction is Instruction.START]
    assert starts == [(Step.PREPARING, Event.PREPARED)]


def test_every_step_leads_to_released() -> None:
    reached = {Step.RELEASED}
    while True:
        more = {s for (s, _), (target, _) in MOVES.items() if target in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(Step)


def test_every_step_shows_a_phase_until_the_report_has_one() -> None:
    assert set(PHASES) == set(Step) - {Step.DONE, Step.CLEANED, Step.RELEASED}


def test_the_diagram_has_a_line_for_each_move() -> None:
    assert len(diagram().splitlines()) == len(MOVES)
