"""Sets of GPUs as their owner writes them: `0,1;2,3`, indices or UUIDs. Each has its monitor."""

import re

NONE = "none"  # no card is watched or given to tasks
CARD = re.compile(r"[0-9]{1,3}|GPU-[0-9A-Za-z-]{1,80}")
NAME = re.compile(r"gpu[0-9]{1,3}")


class GpuSetsError(ValueError):
    """They can't be read; the text says why."""


Sets = tuple[tuple[str, ...], ...]


def parse_sets(text: str) -> Sets:
    """Without text: no sets. GpuSetsError."""
    if not text:
        return ()
    sets = tuple(tuple(card.strip() for card in one.split(",")) for one in text.split(";"))
    cards = [card for one in sets for card in one]
    for card in cards:
        if not CARD.fullmatch(card):
            raise GpuSetsError("must be indices or UUIDs such as 0,1;2,3")
        if cards.count(card) > 1:
            raise GpuSetsError(f"names GPU {card} twice")
    return sets


def is_set_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None
