"""What the executor and the vpn process agree on about the networks of tasks: their names.

Each worker's networks carry digits of their own, so that two workers on one machine never take
each other's bridges, nor fight over each other's rules. Pure; `python -m shared.egress HOME`
prints the name of that worker's nftables table, for who removes it.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

ANY_BRIDGE = "hm-eg"  # how every bridge of any worker's tasks begins
MOST_BRIDGES = 100  # two digits after the worker's own six


@dataclass(frozen=True)
class Names:
    """Of one worker. A bridge's name may have 15 characters."""

    digits: str

    @property
    def task(self) -> str:
        """How the bridges begin that tasks run on."""
        return f"{ANY_BRIDGE}{self.digits}"

    @property
    def install(self) -> str:
        """How those begin on which tasks' dependencies are installed."""
        return f"{ANY_BRIDGE}i{self.digits}"

    @property
    def table(self) -> str:
        """The nftables table, in family inet."""
        return f"hivemind-{self.digits}"


def names(home: Path) -> Names:
    digest = hashlib.sha256(str(home).encode()).digest()
    return Names(f"{int.from_bytes(digest[:8]) % 1_000_000:06d}")


def bridge(prefix: str, number: int) -> str:
    return f"{prefix}{number:02d}"


def number(prefix: str, bridge_name: str) -> int | None:
    """Which of the bridges of this prefix it is; None: none of them."""
    rest = bridge_name.removeprefix(prefix)
    if bridge_name.startswith(prefix) and len(rest) == 2 and rest.isdecimal():
        return int(rest)
    return None


def is_for_tasks(bridge_name: str) -> bool:
    """Not one for installs, whosever it is."""
    return bridge_name.startswith(ANY_BRIDGE) and not bridge_name.startswith(f"{ANY_BRIDGE}i")


if __name__ == "__main__":
    print(names(Path(sys.argv[1])).table)
