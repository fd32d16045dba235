"""Which of a task's figures are watched, and from where on they are an alert. Pure.

When one is raised and cleared is shared/thresholds.py's.
"""

from collections.abc import Mapping

from shared.messages import TaskUse
from shared.thresholds import Rule

RULES = (
    Rule("memory", 90.0, 80.0, 5.0),  # of its limit: what comes next is the OOM killer
    Rule("cpu_throttled", 50.0, 40.0, 10.0),  # of its periods: it would be faster with more
    Rule("disk", 90.0, 80.0, 0.0),  # of its limit, where it is stopped
)


def readings(use: TaskUse) -> Mapping[str, float]:
    """The figure that each rule looks at, in percent."""
    return {
        "memory": _pct(use.memory_bytes, use.memory_limit_bytes),
        "cpu_throttled": use.cpu_throttled_pct,
        "disk": _pct(use.disk_bytes, use.disk_limit_bytes),
    }


def _pct(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0
