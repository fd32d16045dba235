"""What the master throws away, and what it keeps."""

import asyncio
import os
import time
from pathlib import Path

from procs.master import node_records, task_records
from procs.master.core import Demand
from procs.master.database import open_database
from procs.master.files import Files
from procs.master.housekeeping import REPORTS_S, UNUSED_S, tidy
from procs.master.joining import Place
from procs.master.tables import REPORTS
from shared.pb import hivemind_pb2 as pb

DIGESTS = {name: bytes([n]) * 32 for n, name in enumerate(("live", "unused", "fresh"))}


def test_only_what_nobody_can_ask_for_goes(tmp_path: Path) -> None:
    asyncio.run(scenario(tmp_path))


async def scenario(directory: Path) -> None:
    now_unix_s = time.time()
    files, database = Files(directory), open_database(directory / "master.db")
    old = (now_unix_s - UNUSED_S - 1,) * 2
    for name, digest in DIGESTS.items():
        (directory / "inputs" / digest.hex()).write_text(name)
        os.utime(directory / "inputs" / digest.hex(), old)
    for name in ("t.1.x.tar.gz", "t.1.y.tar.gz.part", ".half"):
        folder = "inputs" if name == ".half" else "outputs"
        (directory / folder / name).touch()
        os.utime(directory / folder / name, old)
    assert files.has_input(DIGESTS["fresh"].hex())  # a client is about to name it
    spec = pb.TaskAssignmentRequest(task_id="t", inputs=[pb.TaskInput(sha256=DIGESTS["live"])])
    await database.run(task_records.submit, spec, Demand(), now_unix_s)
    request = pb.NodeRegistrationRequest(node_id="n")
    await database.run(node_records.register, request, Place("n", "", 0, ""), now_unix_s)
    for age_s in (REPORTS_S + 60, REPORTS_S - 60):
        report = pb.NodeStatusRequest(node_id="n")
        getattr(report, "from").FromSeconds(int(now_unix_s - age_s - 30))
        report.to.FromSeconds(int(now_unix_s - age_s))
        await database.run(node_records.report, report)

    await tidy(database, files, now_unix_s)

    kept = {path.read_text() for path in (directory / "inputs").iterdir()}
    assert kept == {"live", "fresh"}
    assert [path.name for path in (directory / "outputs").iterdir()] == ["t.1.x.tar.gz"]
    rows = await database.run(lambda connection: connection.execute(REPORTS.select()).all())
    assert len(rows) == 1
    database.close()
    files.close()
