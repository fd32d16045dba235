"""What a running attempt uses, from its control group: read each beat, without the engine."""

from procs.executor import cgroup
from procs.executor.attempt import Attempt
from shared.messages import TaskUse
from shared.service import PERIOD_S


def sample(attempt: Attempt) -> None:
    """One reading, a beat after the one before."""
    found = cgroup.use(attempt.container_id) if attempt.container_id else None
    if found is None or attempt.grant is None:
        return
    before, attempt.last_cpu_ns = attempt.last_cpu_ns, found.cpu_ns
    used_s = (found.cpu_ns - before) / 1e9 / PERIOD_S if before is not None else 0.0
    memory = attempt.grant.memory_bytes
    attempt.use = TaskUse(
        cpu_pct=round(100 * used_s / attempt.grant.cpus, 1),
        memory_bytes=found.memory_bytes,
        memory_limit_bytes=memory,
    )
    attempt.memory_sum_pct += 100 * found.memory_bytes / memory
    attempt.memory_samples += 1
