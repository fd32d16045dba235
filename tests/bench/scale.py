"""What an executor costs that holds many containers: its memory (PSS) and CPU while they idle.

    python -m tests.bench.scale [COUNT] [SECONDS]

An engine of its own; the tasks sleep, each under its limits; the link's side is this process,
whose own cost is not counted.
"""

import os
import sys
import time

from shared.codec import encode
from shared.messages import TaskPhase
from shared.taskdir import MIB
from tests.bench.cost import cpu_s, pss_mb
from tests.bench.executor import own_engine
from tests.fakes.executor_alone import ExecutorAlone, task

MOST_MB, MOST_PCT = 100.0, 30.0
QUIET_S = 10.0  # after the last has begun to run
SMALL_BYTES = 16 * MIB


def hold(executor: ExecutorAlone, count: int) -> float:
    """Returns when all run; the seconds that it took."""
    began_s = time.monotonic()
    for number in range(count):
        spec = task(
            "sleep", "3600", name=f"t{number}", cpus=0.01, memory_bytes=SMALL_BYTES,
            disk_bytes=SMALL_BYTES, processes=4, stop_grace_s=0.0,
        )  # fmt: skip
        executor.assign(spec)

    def all_run() -> bool:
        state = executor.state()
        running = [t for t in state.tasks if t.phase is TaskPhase.RUNNING] if state else []
        return len(running) == count

    executor.wait(all_run, f"{count} that run", timeout_s=600.0)
    return time.monotonic() - began_s


def idle(executor: ExecutorAlone, seconds: float) -> None:
    """Be its link, and nothing else."""
    until_s = time.monotonic() + seconds
    executor.wait(lambda: time.monotonic() >= until_s, "the time", timeout_s=seconds + 10)


def measure(count: int, seconds: float) -> bool:
    with own_engine() as engine:
        assert engine.task_image
        executor = ExecutorAlone(engine.host, LOG_LEVEL="INFO", MAX_HELD_TASKS=str(count)).start()
        try:
            took_s = hold(executor, count)
            pid = executor.pid()
            idle(executor, QUIET_S)
            before_s, began_s = cpu_s(pid), time.monotonic()
            idle(executor, seconds)
            spent_s = time.monotonic() - began_s
            cpu_pct = 100 * (cpu_s(pid) - before_s) / spent_s
            memory_mb = pss_mb(pid)
            assert executor.pid() == pid, "it was started anew"
            state = executor.state()
            assert state is not None
            message_bytes = len(encode(state))
        finally:
            executor.stop()
    print(f"{count} containers, all running after {took_s:.0f} s; over {spent_s:.0f} s of idling,")
    print(f"load average {os.getloadavg()[0]:.2f}: {memory_mb:.1f} MB PSS (target {MOST_MB:g}),")
    print(f"{cpu_pct:.2f} % of a core (target {MOST_PCT:g}), task.state {message_bytes} bytes")
    return memory_mb <= MOST_MB and cpu_pct <= MOST_PCT


if __name__ == "__main__":
    held = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    sys.exit(not measure(held, float(sys.argv[2]) if len(sys.argv) > 2 else 30.0))
