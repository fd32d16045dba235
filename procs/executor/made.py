"""What was made for an attempt: a life of the process after this one finds its container's
processes by it, also where the engine has lost them, and reports the same as this one would.

Not synced: a machine that goes down takes the container's processes with it.
"""

from pathlib import Path

import msgspec

MADE = "container"  # in the attempt's directory


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The container, and what of its image the end and the report need."""

    container_id: str
    image_digest: str
    stop_signal: str
    pull_s: float = 0.0


def write_made(directory: Path, made: Made) -> None:
    (directory / MADE).write_bytes(msgspec.json.encode(made))


def read_made(directory: Path) -> Made | None:
    """None: no container was made, or a life was killed before it could ask to start it."""
    try:
        return msgspec.json.decode((directory / MADE).read_bytes(), type=Made)
    except (FileNotFoundError, ValueError):
        return None
