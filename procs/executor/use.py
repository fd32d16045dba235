"""What a running attempt uses, from its control group: read each beat, without the engine."""

import time

from procs.executor import cgroup
from procs.executor.alerts import RULES, readings
from procs.executor.attempt import Attempt
from procs.executor.cgroup import Use
from procs.executor.core import Step
from procs.executor.gpus import Cards
from procs.executor.quota import Grant
from shared.messages import TaskUse
from shared.service import PERIOD_S
from shared.thresholds import next_watches


def sample(attempt: Attempt, disk_bytes: int) -> None:
    """One reading, a beat after the one before."""
    if attempt.group is None or attempt.group.container != attempt.container_id:
        attempt.group = cgroup.find(attempt.container_id)
        attempt.keeper_pid = cgroup.keeper(attempt.container_id)
    found = cgroup.use(attempt.group) if attempt.group else None
    if found is None or attempt.grant is None:
        return
    network = cgroup.network(attempt.keeper_pid) if attempt.spec.egress else (0, 0)
    attempt.use = as_use(attempt.last_use, found, attempt.grant, network, disk_bytes)
    attempt.last_use = found
    attempt.watches = next_watches(
        attempt.watches, readings(attempt.use), f"task {attempt.key.directory}",
        time.monotonic(), time.time(), RULES,
    )  # fmt: skip
    attempt.memory_sum_pct += 100 * found.memory_bytes / attempt.grant.memory_bytes
    attempt.memory_samples += 1
    attempt.memory_peak_bytes = max(attempt.memory_peak_bytes, found.memory_bytes)


def as_use(
    before: Use | None, now: Use, grant: Grant, network: tuple[int, int], disk_bytes: int
) -> TaskUse:
    """What changed since the reading a beat before, and what has come together."""
    before = before or now
    used_s = (now.cpu_ns - before.cpu_ns) / 1e9 / PERIOD_S
    periods = now.periods - before.periods
    throttled = now.throttled_periods - before.throttled_periods
    return TaskUse(
        cpu_pct=round(100 * used_s / grant.cpus, 1),
        memory_bytes=now.memory_bytes,
        memory_limit_bytes=grant.memory_bytes,
        cpu_throttled_pct=round(100 * throttled / periods, 1) if periods > 0 else 0.0,
        block_read_bytes=now.block_read_bytes,
        block_written_bytes=now.block_written_bytes,
        network_received_bytes=network[0],
        network_sent_bytes=network[1],
        disk_bytes=disk_bytes,
        disk_limit_bytes=grant.disk_bytes,
    )


def sample_gpus(attempt: Attempt, cards: Cards) -> None:
    """What its monitor says of a task's cards. One that is lost is told, and is no end: the task
    may do without."""
    uuids = attempt.grant.gpus if attempt.grant else ()
    if not uuids:
        return
    used_pct = cards.use_pct(uuids)
    if used_pct is not None:
        attempt.gpu_sum_pct += used_pct
        attempt.gpu_samples += 1
    if attempt.step is Step.RUNNING:
        attempt.detail = cards.lost(uuids)
