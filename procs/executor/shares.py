"""How much CPU all tasks together may claim against the owner's own programs. Pure.

A weight: whatever nobody else wants, tasks get all the same. It sinks at once when the owner
works and CPU is short, and rises late and in steps, so that it does not follow each pause.
"""

from dataclasses import dataclass

NORMAL_PCT, LEAST_PCT = 100.0, 1.0  # of the weight that any other group has
OWNER_QUIET_PCT, OWNER_BUSY_PCT = 10.0, 50.0  # of the machine's CPU: normal below, least above
CALM_PRESSURE_PCT = 5.0  # below it hardly anybody waits for CPU: nothing is to be shared
RISE_AFTER_S = 10.0
RISE_FACTOR = 2.0  # a step


@dataclass(frozen=True)
class Weight:
    """Now; and since when a higher one would do (monotonic)."""

    pct: float = NORMAL_PCT
    calm_since_s: float | None = None


def target_pct(owner_cpu_pct: float, pressure_cpu_pct: float | None) -> float:
    """What would be right now. `pressure_cpu_pct` None: the kernel does not say."""
    if pressure_cpu_pct is not None and pressure_cpu_pct < CALM_PRESSURE_PCT:
        return NORMAL_PCT
    over = (owner_cpu_pct - OWNER_QUIET_PCT) / (OWNER_BUSY_PCT - OWNER_QUIET_PCT)
    return NORMAL_PCT - (NORMAL_PCT - LEAST_PCT) * min(max(over, 0.0), 1.0)


def next_weight(
    before: Weight, owner_cpu_pct: float, pressure_cpu_pct: float | None, now_s: float
) -> Weight:
    """Down at once; up when it has been calm for RISE_AFTER_S, a step each time."""
    target = target_pct(owner_cpu_pct, pressure_cpu_pct)
    if target <= before.pct:
        return Weight(target)
    calm_since_s = now_s if before.calm_since_s is None else before.calm_since_s
    if now_s - calm_since_s < RISE_AFTER_S:
        return Weight(before.pct, calm_since_s)
    return Weight(min(target, before.pct * RISE_FACTOR), calm_since_s)


def owner_cpu_pct(host_cpu_pct: float, tasks_cpu_pct: float) -> float:
    """Of the machine: what is used and is not the tasks'."""
    return max(host_cpu_pct - tasks_cpu_pct, 0.0)
