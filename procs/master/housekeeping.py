"""Throws away what nobody can ask for any more, once an hour. Tasks, logs and outputs stay."""

import asyncio
import logging
import time

from procs.master import joining, node_records, task_records, tokens
from procs.master.database import Database
from procs.master.files import Files
from shared.pb import hivemind_pb2 as pb

log = logging.getLogger("master")

PERIOD_S = 3600.0
UNUSED_S = 24 * 3600.0  # an input that no live task names, or half a file
REPORTS_S = 7 * 24 * 3600.0
APPLICANTS_S = 24 * 3600.0  # without a word from them
TOKENS_S = 30 * 24 * 3600.0  # after their end: a node is told so


async def run(database: Database, files: Files) -> None:
    while True:
        await tidy(database, files, time.time())
        await asyncio.sleep(PERIOD_S)


async def tidy(database: Database, files: Files, now_unix_s: float) -> None:
    """What is a day old and not of a live task goes; reports of the last week stay."""
    specs = await database.run(task_records.specs)
    named = {
        i.sha256.hex() for body in specs for i in pb.TaskAssignmentRequest.FromString(body).inputs
    }
    gone = await asyncio.to_thread(files.drop_unused, named, now_unix_s - UNUSED_S)
    await database.run(node_records.drop_reports, now_unix_s - REPORTS_S)
    await database.run(joining.drop_old, now_unix_s - APPLICANTS_S)
    await database.run(tokens.drop_old, now_unix_s - TOKENS_S)
    if gone:
        log.info("%d files that nobody needs were deleted", gone)
