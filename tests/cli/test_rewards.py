"""`hivemind-worker rewards` on a link.db that master_link's own store has written."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from procs.cli.main import app
from procs.master_link.reports import Reward
from procs.master_link.store import Store

NOW_S = 1_800_000_000.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    store = Store.open(tmp_path / "lib" / "link.db")
    for n in range(3):
        begin_s = NOW_S + n * 30
        store.add_reward(
            Reward("interval", "", begin_s, begin_s + 30, 60.0, 60.0, 0.0, 12, (n + 1) * 12)
        )
    store.add_reward(Reward("task", "t\x1b[2J.1", NOW_S, NOW_S + 70, 99.0, 80.0, 50.0, 15, 0))
    store.close()
    return tmp_path


def rewards(home: Path, *arguments: str) -> tuple[int, str, str]:
    ran = CliRunner().invoke(app, ["rewards", *arguments], env={"HIVEMIND_HOME": str(home)})
    return ran.exit_code, ran.stdout, ran.stderr


def test_rewards_are_listed_the_newest_first_with_what_they_are_for(home: Path) -> None:
    code, out, _ = rewards(home)
    assert code == 0
    assert out.splitlines()[0] == "36 by report intervals, 15 by listed tasks"
    assert [line.split()[-6:] for line in out.splitlines()[1:2]] == [
        ["CPU", "60.0", "%,", "memory", "60.0", "%"]
    ]
    assert "\x1b" not in out
    assert "t\\x1b[2J.1" in out
    assert "GPU 50.0 %" in out


def test_programs_get_json_of_as_many_as_they_ask_for(home: Path) -> None:
    code, out, _ = rewards(home, "--json", "--limit", "2")
    found = json.loads(out)
    assert code == 0
    assert (found["reward_total"], found["task_rewards"]) == (36, 15)
    assert [(r["kind"], r["reward"], r["total"]) for r in found["rewards"]] == [
        ("interval", 12, 36),
        ("task", 15, 0),
    ]
    assert json.loads(rewards(home, "--json", "--since", "2999-01-01")[1])["rewards"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param((), 1, "there is no list of rewards in", id="no database"),
        pytest.param(("--since", "soon"), 2, "--since must be like", id="no time"),
    ],
)
def test_what_can_not_be_shown_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, out, err = rewards(tmp_path, *arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert len(err.splitlines()) == 1
