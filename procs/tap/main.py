"""`hivemind-tap`: prints what passes on the bus. Reads every topic, publishes nothing.

It binds no socket and takes no lock, so that no process can see or feel it.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from procs.tap.core import json_line, readable_line, unknown_topics
from shared.bus import Tap
from shared.settings import SettingsError, find_home
from shared.topics import TOPICS

LOOK_S = 0.2  # a socket that appears is connected within this
SILENCE_S = 2.0  # two beats: then no worker runs here


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if unknown := unknown_topics(options.topics):
        print(f"there is no topic {unknown[0]!r}; topics: {', '.join(TOPICS)}", file=sys.stderr)
        return 2
    try:
        home = options.home or find_home(os.environ, Path.cwd())
    except SettingsError as err:
        print(f"{err}; or use --home DIR", file=sys.stderr)
        return 2
    tap = Tap(home, options.topics)
    try:
        _print_all(tap, home, options.count, options.json)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader has seen enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        tap.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hivemind-tap", description="Prints the STATEs that pass on a worker's bus."
    )
    parser.add_argument(
        "topics", nargs="*", metavar="TOPIC", help=f"these alone, of: {', '.join(TOPICS)}"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, every field")
    parser.add_argument("--count", type=number, metavar="N", help="end after N messages")
    parser.add_argument(
        "--home", type=Path, metavar="DIR", help="the worker's home; default: HIVEMIND_HOME"
    )
    return parser


def number(text: str) -> int:
    """N of --count: at least 1; argparse names it where it is wrong."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _print_all(tap: Tap, home: Path, count: int | None, as_json: bool) -> None:
    left = count
    quiet_since_s, said = time.monotonic(), False
    while left is None or left > 0:
        passed = tap.next(LOOK_S)
        now_s = time.monotonic()
        if passed is None:
            if now_s - quiet_since_s > SILENCE_S and not said:
                print(f"no worker speaks in {home}; waiting for one", file=sys.stderr, flush=True)
                said = True
            continue
        quiet_since_s, said = now_s, False
        source, message = passed
        at_unix_s = time.time() - (now_s - message.at_s)
        line = json_line if as_json else readable_line
        print(line(source, message, at_unix_s), flush=True)
        left = None if left is None else left - 1
