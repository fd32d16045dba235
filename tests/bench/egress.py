"""Tasks with network, one after another: what a bridge of its own costs a task, and whether the
pool stays at its size.

    python -m tests.bench.egress [COUNT]

An engine, an executor and a vpn process of its own; COUNT (200) tasks with EGRESS and as many
without, in turn. Exit 1 when a network is left over.
"""

import shutil
import statistics
import sys
import time

from shared.messages import TaskPhase
from tests.bench.executor import own_engine
from tests.fakes.executor_alone import ExecutorAlone, task

WARM_UP = 3
MOST_NETWORKS = 1  # one after another need no second


def took_s(executor: ExecutorAlone, name: str, *, egress: bool) -> float:
    began_s = time.monotonic()
    key = executor.assign(task("true", name=name, egress=egress))
    report = executor.wait_report(key)
    took = time.monotonic() - began_s
    assert report.phase is TaskPhase.SUCCEEDED, report
    executor.wait_released(key)
    return took


def main(count: int) -> int:
    if shutil.which("nft") is None:
        raise SystemExit("nft is missing: install the package nftables")
    with own_engine() as engine:
        assert engine.task_image
        namespace = (engine.folder / "namespace").read_text().strip()
        executor = ExecutorAlone(engine.host, namespace).start()
        try:
            executor.wait(lambda: (v := executor.vpn()) and v.covered_bridges, "a network")
            times: dict[bool, list[float]] = {True: [], False: []}
            for number in range(-WARM_UP, count):
                for egress in (True, False):
                    took = took_s(executor, f"t{number}-{egress}", egress=egress)
                    if number >= 0:
                        times[egress].append(took)
            networks = executor.networks()
        finally:
            executor.stop()
    with_network, without = (statistics.median(times[egress]) for egress in (True, False))
    print(f"{count} tasks with EGRESS, one after another: {len(networks)} network(s) in the pool")
    print(f"median {1000 * with_network:.0f} ms, without network {1000 * without:.0f} ms")
    return 0 if len(networks) <= MOST_NETWORKS else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
