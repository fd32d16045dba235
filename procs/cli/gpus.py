"""`hivemind-worker configure`: which sets of GPUs are watched, a program of supervisord's for each.

The driver is asked by a process of its own, which may hang or crash. What is written names cards by
UUID: indices change when one is lost or added.
"""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from procs.cli.core import supervisor_socket
from shared.files import write_atomic
from shared.gpu_sets import NONE, GpuSetsError, Sets, parse_sets

ASK_S = 60.0  # without its daemon the driver takes seconds to begin, for each card
NO_DRIVER = 3  # exit code of procs.monitor cards
FILE = "gpus.conf"


class NoCardsError(Exception):
    """What was asked for can't be had now; the text says why."""


class Card(msgspec.Struct, frozen=True):
    """One that the driver has."""

    index: int
    uuid: str
    name: str


def look(root: Path, environment: Mapping[str, str]) -> list[Card]:
    """What there is; without a driver nothing. NoCardsError: there is one, and it does not work."""
    command = [sys.executable, "-m", "procs.monitor", "cards"]
    asked = subprocess.Popen(
        command, cwd=root, env=dict(environment), stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = asked.communicate(timeout=ASK_S)
    except subprocess.TimeoutExpired:
        asked.kill()  # and not waited for: it may be where no signal reaches
        raise NoCardsError(f"the driver has not answered for {ASK_S:.0f} s") from None
    if asked.returncode == NO_DRIVER:
        return []
    if asked.returncode != 0:
        lines = err.strip().splitlines()
        raise NoCardsError(lines[-1] if lines else f"the driver ended it: {asked.returncode}")
    return msgspec.json.decode(out, type=list[Card])


def chosen(text: str, cards: Sequence[Card]) -> Sets:
    """The sets by UUID; empty text: all in one. GpuSetsError."""
    if text == NONE:
        return ()
    if not text:
        return (tuple(card.uuid for card in cards),) if cards else ()
    known = {str(card.index): card.uuid for card in cards} | {c.uuid: c.uuid for c in cards}
    sets = parse_sets(text)
    for name in (name for one in sets for name in one):
        if name not in known:
            there = ", ".join(str(card.index) for card in cards) or "none"
            raise GpuSetsError(f"names GPU {name}, which is not there; there is {there}")
    found = tuple(tuple(known[name] for name in one) for one in sets)
    uuids = [uuid for one in found for uuid in one]
    if len(set(uuids)) < len(uuids):
        raise GpuSetsError("names one GPU by its index and by its UUID")
    return found


PROGRAM = """\
[program:monitor@gpu{number}]
command = /bin/sh {start} monitor gpu{number} {cards}
directory = {root}
startsecs = 0
autorestart = unexpected
exitcodes = 2
stopasgroup = true
killasgroup = true
stdout_logfile = NONE
stderr_logfile = NONE
"""


def render(sets: Sets, root: Path) -> str:
    """What supervisor.conf includes."""
    start = shlex.quote(f"{root}/procs/start.sh").replace("%", "%%")
    where = str(root).replace("%", "%%")
    programs = [
        PROGRAM.format(number=number, start=start, root=where, cards=",".join(cards))
        for number, cards in enumerate(sets)
    ]
    head = "; Written by hivemind-worker configure: a monitor for each set of GPUs.\n\n"
    return head + "\n".join(programs)


def write(home: Path, sets: Sets, root: Path) -> bool:
    """Whether anything changed."""
    path = home / "conf.d" / FILE
    before = path.read_text() if path.exists() else ""
    text = render(sets, root) if sets else ""
    if text == before:
        return False
    if sets:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        write_atomic(path, text.encode(), 0o644)
    else:
        path.unlink()
    return True


def reload(home: Path, root: Path) -> str:
    """How a worker takes up what was written, as it was started: supervisor.conf includes what is
    in `var` beside it, and `hivemind-worker` writes its own for every home."""
    own = home / "run" / "supervisor.conf"
    if supervisor_socket(home).exists() or home != root / "var":
        return f"supervisorctl -c {own} reload"
    return "supervisorctl -c supervisor.conf reload"


def told(sets: Sets, cards: Sequence[Card]) -> list[str]:
    """A line for each monitor. No cards: nobody looked, or there are none."""
    by_uuid = {card.uuid: card for card in cards}
    lines = []
    for number, uuids in enumerate(sets):
        names = (f"{by_uuid[u].index} {by_uuid[u].name} ({u})" for u in uuids)
        lines.append(f"monitor@gpu{number}: {', '.join(names)}")
    if not sets and not cards:
        return ["no GPU, or no driver for it: run this again when there is one"]
    return lines
