"""Limits of a running task on a real engine, seen in `task.state` and in its report."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.messages import HeldTask
from shared.taskdir import LOG, MIB, OUTPUT
from shared.tasklog import WORKER, LogReader
from tests.fakes.engine_proxy import EngineProxy
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

NEAR_ITS_LIMITS = """
kept = b'x' * (112 * 2**20)
with open('/output/a', 'wb') as file:
    for n in range(15): file.write(bytes(2**20))
while True: pass
"""
FILL = (
    "echo up; trap '' TERM; while [ ! -e /output/go ]; do sleep 0.1; done; i=0;"
    " while :; do head -c 1000000 /dev/zero > /output/$i; i=$((i+1)); done"
)


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    assert engine.task_image
    alone = ExecutorAlone(engine.host).start()
    yield alone
    alone.stop()


def test_use_and_alerts_of_a_task_near_its_limits_are_seen(executor: ExecutorAlone) -> None:
    key = executor.assign(
        task(
            "python3", "-c", NEAR_ITS_LIMITS, name="near",
            cpus=0.1, memory_bytes=128 * MIB, disk_bytes=16 * MIB,
        )
    )  # fmt: skip

    def near() -> HeldTask | None:
        held = executor.held(key)
        rules = {alert.rule for alert in held.alerts} if held else set()
        return held if rules == {"memory", "cpu_throttled", "disk"} else None

    held = executor.wait(near, "its three alerts")
    assert held is not None
    assert held.use is not None
    assert {alert.subject for alert in held.alerts} == {"task near.1"}
    assert held.use.cpu_throttled_pct > 50
    assert 15 * MIB <= held.use.disk_bytes < held.use.disk_limit_bytes == 16 * MIB
    executor.cancel(key)
    assert executor.wait_report(key).phase == "cancelled"
    ended = executor.held(key)
    assert ended is not None
    assert ended.alerts == ()


def test_a_log_is_cut_at_its_limit_with_a_note_and_the_task_goes_on(
    executor: ExecutorAlone,
) -> None:
    key = executor.assign(
        task("sh", "-c", "head -c 3000000 /dev/zero; echo err >&2", name="loud",
             log_limit_bytes=MIB)
    )  # fmt: skip
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("succeeded", 0)
    assert 3000000 - MIB < report.log_bytes_dropped < 3000000
    assert (executor.directory(key) / LOG).stat().st_size < MIB + 4096
    reader, last = LogReader(executor.directory(key) / LOG), []
    while records := reader.read():
        last = records
    reader.close()
    assert last[-1].stream == WORKER
    assert f"the log's limit is {MIB} bytes" in last[-1].data.decode()


def test_a_full_disk_ends_a_task_at_once_while_the_engine_is_away(engine: PrivateEngine) -> None:
    assert engine.task_image
    with tempfile.TemporaryDirectory(prefix="hp-", dir="/tmp") as folder:
        path, real = Path(folder) / "p.sock", engine.folder / "docker.sock"
        proxy = EngineProxy(path, real)
        executor = ExecutorAlone(proxy.host).start()
        try:
            spec = task("sh", "-c", FILL, name="away", disk_bytes=20 * MIB, stop_grace_s=60.0)
            key = executor.assign(spec)
            executor.wait(lambda: b"up" in executor.output(key), "up")
            proxy.close()
            executor.wait(lambda: not executor.available(), "the engine away")
            (executor.directory(key) / OUTPUT / "go").touch()
            report = executor.wait_report(key)
            assert (report.phase, report.exit_code) == ("out_of_disk", 137)
            assert not executor.available()
            path.unlink()
            proxy = EngineProxy(path, real)
            executor.wait(lambda: executor.containers() == [], "no container left")
        finally:
            executor.stop()
            proxy.close()
