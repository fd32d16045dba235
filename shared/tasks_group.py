"""The control group above the groups of all tasks' containers: where its files are.

One for all workers of an engine. The executor has the engine make it, and sets its weight; the
monitor reads what all tasks use.
"""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PARENT = "hivemind"
PARENTS = {"cgroupfs": f"/{PARENT}", "systemd": f"{PARENT}.slice"}  # by the engine's driver
PLACES = (PARENT, f"{PARENT}.slice")


def is_v2(root: Path = ROOT) -> bool:
    """On both kinds at once (hybrid), Docker uses v1."""
    return (root / "cgroup.controllers").exists()


def files(controller: str, name: str, root: Path = ROOT) -> list[Path]:
    """The file `name`, of either driver: on v1 it lies with its controller."""
    base = root if is_v2(root) else root / controller
    return [base / place / name for place in PLACES]
