"""README says what the code does: its tables are held to the code's."""

import re
from pathlib import Path

import pytest

from procs.executor.core import diagram
from procs.executor.quota import CPU_OVERCOMMIT, TRUST_SHARES
from shared.settings import default_table
from shared.topics import TOPICS
from tests.bench.shares_plot import plot
from tests.executor.attacks import ATTACKS
from tests.executor.bombs import BOMBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("row", list(default_table()), ids=lambda row: row[0])
def test_every_setting_is_there_with_its_default(row: tuple[str, str, str]) -> None:
    name, default, meaning = row
    shown = f"`{default}`" if default else ""
    assert f"| `{name}` | {shown} | {meaning} |" in README


def test_no_setting_is_there_that_does_not_exist() -> None:
    table = README.split("\n## Settings")[1].split("\n## ")[0]
    names = re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE)
    assert names == [name for name, _, _ in default_table()]


def test_every_topic_is_there_with_its_owner() -> None:
    rows = re.findall(r"^\| `([a-z]+\.[a-z]+)` \| `(\w+)` \|", README, re.MULTILINE)
    assert rows == [(topic.name, topic.owner) for topic in TOPICS.values()]


def test_the_state_table_is_the_codes() -> None:
    assert diagram() in README


def test_the_plot_of_the_tasks_weight_is_the_policys() -> None:
    assert f"```\n{plot()}\n```" in README, "python -m tests.bench.shares_plot"


def test_what_can_break_is_shown_by_a_test() -> None:
    table = README.split("| what breaks |")[1].split("\n\n")[0]
    named = re.findall(r"`(test_\w+)` \|$", table, re.MULTILINE)
    assert len(named) == table.count("\n") - 1
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in named if f"\ndef {name}(" not in tests] == []


def test_the_trust_table_is_the_codes() -> None:
    shares = " | ".join(f"{100 * share:.0f} %" for share in TRUST_SHARES)
    assert f"| share of CPU, memory, disk and GPUs (whole ones) | {shares} |" in README
    assert CPU_OVERCOMMIT == 4, "README says: up to four times"


def all_attacks() -> list[tuple[str, str]]:
    """What stops each, and what it does."""
    bombs = [(bomb.wall, bomb.what) for bomb in BOMBS.values()]
    return [(one.wall, one.what) for one in ATTACKS.values()] + bombs


def test_every_attack_is_there_with_what_stops_it() -> None:
    tried: dict[str, list[str]] = {}
    for wall, what in all_attacks():
        tried.setdefault(wall, []).append(what)
    rows = "\n".join(f"| {'; '.join(what)} | {wall} |" for wall, what in tried.items())
    assert rows in README, f"README must have\n{rows}"
    assert f"tries {len(all_attacks())} escapes and abuses" in README


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("anchor", re.findall(r"\]\(#([^)]+)\)", README))
def test_anchors_lead_somewhere(anchor: str) -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
