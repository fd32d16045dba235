"""How a message reads on one line."""

import json

import pytest

from procs.tap.core import LONGEST_LINE, json_line, readable_line, unknown_topics
from shared.messages import Message, OwnerWant, TaskState, VpnState
from tests.fakes.bus_worker import host_load, link_state, running_task, task_state


@pytest.mark.parametrize(
    ("wanted", "unknown"),
    [
        pytest.param(["task.want"], [], id="a topic"),
        pytest.param(["task"], [], id="the beginning of two"),
        pytest.param(["task.want", "tsk"], ["tsk"], id="a slip"),
        pytest.param([], [], id="none: all"),
    ],
)
def test_unknown_topics(wanted: list[str], unknown: list[str]) -> None:
    assert unknown_topics(wanted) == unknown


@pytest.mark.parametrize(
    ("message", "said"),
    [
        pytest.param(OwnerWant(at_s=1.0), "owner.want    x            wish=ready", id="short"),
        pytest.param(TaskState(at_s=1.0, synced=False), " UNSYNCED ", id="unsynced"),
        pytest.param(task_state(1.0, running_task()), "directory=train.1", id="a task"),
        pytest.param(host_load(1.0), "cpu_pct=41.5", id="a figure"),
        pytest.param(link_state(1.0, detail="a b"), 'detail="a b"', id="a text with spaces"),
        pytest.param(VpnState(at_s=1.0, detail="\x1b[31m"), "detail=\\x1b[31m", id="hostile"),
        pytest.param(
            OwnerWant(at_s=1.0, stopped_tasks=tuple("abcdef")), "[a, b, c, d, … 2 more]", id="long"
        ),
    ],
)
def test_readable_line(message: Message, said: str) -> None:
    assert said in readable_line("x", message, 0.25)


def test_a_readable_line_has_its_time_and_an_end() -> None:
    line = readable_line("executor", task_state(1.0, *[running_task("t" * 60)] * 4), 12.25)
    assert line[5:12] == ":12.250"
    assert len(line) == LONGEST_LINE
    assert line.endswith("…")


def test_a_json_line_has_every_field() -> None:
    line = json_line("executor", task_state(1.0, running_task()), 7.5)
    read = json.loads(line)
    assert "\n" not in line
    assert (read["topic"], read["source"], read["at_unix_s"]) == ("task.state", "executor", 7.5)
    assert read["tasks"][0]["use"]["cpu_pct"] == 63.0
