"""`lib/owner.json`, which keeps the owner's wishes over restarts."""

import logging
from pathlib import Path

import msgspec

from procs.web.core import WISHES, Owner
from shared.files import write_atomic

log = logging.getLogger("web")


def load_owner(path: Path) -> Owner:
    """What was saved; a broken file is set aside, and said, and the node is ready."""
    try:
        owner = msgspec.json.decode(path.read_bytes(), type=Owner)
        if owner.wish in WISHES:
            return owner
        raise ValueError(f"wish is {owner.wish}")
    except FileNotFoundError:
        return Owner()
    except ValueError as err:
        aside = path.with_name(f"{path.name}.broken")
        path.replace(aside)
        log.error("%s can't be read (%s): set aside as %s; the node is ready", path, err, aside)
        return Owner()


def save_owner(path: Path, owner: Owner) -> None:
    write_atomic(path, msgspec.json.encode(owner))
