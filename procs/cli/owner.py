"""`hivemind-worker drain`, `pause`, `resume`, `vpn rotate`: the owner's wish, asked of web.

Reads the bus to wait for the end of the last task; publishes nothing.
"""

import sys
import time
from pathlib import Path

from procs.cli.core import Drain, News
from shared.bus import Tap
from shared.messages import NodePhase
from shared.owner_socket import ask_owner

LOOK_S = 0.5
TOPICS = ("task.state", "link.state", "owner.want")
SAID = {
    NodePhase.READY: "the node takes tasks again, unless the master or a fault says otherwise",
    NodePhase.PAUSED: "the node is paused: it takes no task; those that it has go on",
    NodePhase.DRAINING: "the node is draining: it takes no task; those that it has go on",
}


class CalledOffError(Exception):
    """Someone wished otherwise meanwhile."""


class TooLateError(Exception):
    """There are tasks left."""


def wish(home: Path, phase: NodePhase) -> None:
    """Kept on disk when this returns; NoAnswerError, RefusedError."""
    ask_owner(home, "/owner", {"wish": phase.value})
    print(SAID[phase], flush=True)


def rotate(home: Path) -> None:
    """Kept on disk when this returns; NoAnswerError, RefusedError."""
    ask_owner(home, "/vpn/rotate", {})
    print("a new key is made; the tunnel changes to it as soon as the master knows it")


def wait_for_the_last(home: Path, timeout_s: float | None) -> None:
    """Until no task is held, nor its result owed to the master."""
    news, drain = News(), Drain(time.monotonic())
    tap = Tap(home, TOPICS)
    left: int | None = None
    try:
        while left != 0:
            if timeout_s is not None and time.monotonic() - drain.since_s > timeout_s:
                raise TooLateError(f"{drain.told(left)} after {timeout_s:g} s")
            if passed := tap.next(LOOK_S):
                news.take(*passed, time.monotonic())
            if drain.is_called_off(news):
                raise CalledOffError("the node is not draining any more: someone called it off")
            now_left = drain.left(news, time.monotonic())
            if now_left != left:
                print(drain.told(now_left), file=sys.stderr, flush=True)
            left = now_left
    finally:
        tap.close()
