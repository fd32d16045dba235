"""The rules at the head of messages.py, held to the code."""

import typing

import msgspec
import pytest

from shared.messages import MESSAGES, Message, TaskPhase

UNITS = ("_s", "_bytes", "_pct", "_w", "_c", "_1m", "_unix_s")
KINDS = [pytest.param(kind, id=topic) for topic, kind in MESSAGES.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_needs_nothing_but_its_time(kind: type[Message]) -> None:
    message = kind(at_s=1.5)
    assert message.synced
    assert message.topic == kind.__struct_config__.tag


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_frozen(kind: type[Message]) -> None:
    with pytest.raises(AttributeError):
        kind(at_s=1.5).at_s = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_that_is_no_count_has_a_unit(kind: type[Message]) -> None:
    for field in msgspec.structs.fields(kind):
        if float in (field.type, *typing.get_args(field.type)):
            assert field.name.endswith(UNITS), field.name


def test_every_message_is_in_the_table_that_is_decoded_by() -> None:
    assert set(Message.__subclasses__()) == set(MESSAGES.values())


def test_final_phases() -> None:
    final = {phase.value for phase in TaskPhase if phase.is_final}
    assert final == {
        "succeeded", "failed", "cancelled", "timed_out", "out_of_memory", "out_of_disk",
    }  # fmt: skip
