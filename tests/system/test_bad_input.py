"""What is malformed or broken is said plainly, and nothing that is held is lost by it."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from procs.executor.quota import DEFAULT_MEMORY_BYTES
from shared.pb import hivemind_pb2 as pb
from tests.fakes.link_master import FakeMaster
from tests.system.engine.private import PrivateEngine
from tests.system.whole import LONGEST_S, Worker, check_out, short_folder, until, whole

pytestmark = [pytest.mark.docker, pytest.mark.system]

MALFORMED: dict[str, dict[str, Any]] = {
    "task_id": {"task_id": "a/b"},
    "attempt": {"attempt": 0},
    "command[0]": {"command": ["x" * 200_000]},
    "environment['A=B']": {"environment": {"A=B": "x"}},
    "inputs[0].path": {"inputs": [pb.TaskInput(path="../x", sha256=b"0" * 32)]},
    "output_globs[0]": {"output_globs": ["/etc/*"]},
}
RUNS = "echo up; until [ -e /output/stop ]; do sleep 0.1; done; echo bye"


def test_a_malformed_assignment_is_refused_by_its_field() -> None:
    """Without an engine: what is wrong in itself is said before anything else."""

    async def scenario(folder: Path) -> dict[str, str]:
        master = FakeMaster()
        await master.start()
        nothing = f"unix://{folder}/no-docker.sock"
        worker = Worker(folder, MASTER_NODE_URL=master.url, DOCKER_HOST=nothing)
        await asyncio.to_thread(worker.start)
        try:
            found = {}
            for field, broken in MALFORMED.items():
                request = pb.TaskAssignmentRequest(**{"task_id": "t", "attempt": 1, **broken})
                answer = await master.assign(request, limit_s=LONGEST_S)
                assert not answer.accepted
                assert answer.refusal == pb.REFUSAL_INVALID
                found[field] = answer.reason
            assert worker.held() == []
            return found
        finally:
            await asyncio.to_thread(worker.stop)
            await master.close()

    with short_folder() as folder:
        check_out(folder)
        reasons = asyncio.run(scenario(folder))
    assert [reason.partition(":")[0] for reason in reasons.values()] == list(MALFORMED)


def spoil(lib: Path, name: str) -> None:
    for path in (lib / name, lib / f"{name}-wal"):
        path.write_bytes(b"this is no database\n" * 1000)


def test_broken_databases_are_set_aside_and_nothing_held_is_lost(engine: PrivateEngine) -> None:
    with whole(engine.host, engine.task_image, RESERVED_MEMORY="0") as (worker, master):
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory_bytes -= DEFAULT_MEMORY_BYTES // 2
        begins = master.submit("sh", "-c", RUNS, memory_bytes=memory_bytes)
        until(lambda: master.is_running(begins), "one runs")
        waits = master.submit("sh", "-c", RUNS)  # the node's default, which is more than is left
        until(lambda: worker.held() == sorted([f"{begins}.1", f"{waits}.1"]), "one waits")
        worker.kill()
        for name in ("link.db", "executor.db"):
            spoil(worker.home / "lib", name)
        worker.start()
        worker.spoken("master_link", "executor")
        assert "link.db is broken" in (worker.home / "log" / "master_link.log").read_text()
        assert "executor.db is broken" in (worker.home / "log" / "executor.log").read_text()
        for task_id in (begins, waits):
            let_end = worker.home / "tasks" / f"{task_id}.1" / "output"
            until(let_end.exists, "it runs")
            (let_end / "stop").touch()
            task = master.ended(task_id)
            assert (task["state"], task["exit_code"], task["attempt"]) == ("succeeded", 0, 1), task
            assert master.log(task_id)["stdout"] == b"up\nbye\n"
        until(lambda: worker.held() == [], "both are let go")
        assert master.node_count() == 1
