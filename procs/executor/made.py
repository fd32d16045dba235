"""The container that was made for an attempt: a life of the process after this one finds its
processes by it, also where the engine has lost them.

Not synced: a machine that goes down takes the container's processes with it.
"""

from pathlib import Path

import msgspec

MADE = "container"  # in the attempt's directory


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What is known only once it is there; what it was given is in `grant`."""

    container_id: str
    stop_signal: str


def write_made(directory: Path, made: Made) -> None:
    (directory / MADE).write_bytes(msgspec.json.encode(made))


def read_made(directory: Path) -> Made | None:
    """None: no container was made, or a life was killed before it could ask to start it."""
    try:
        return msgspec.json.decode((directory / MADE).read_bytes(), type=Made)
    except (FileNotFoundError, ValueError):
        return None
