"""A reader of a task's log goes on from any record, also from one that begins a MiB."""

from pathlib import Path

from shared.tasklog import LogReader
from tests.fakes.keeper_log import KeeperLog


def test_a_reader_may_begin_with_every_record(tmp_path: Path) -> None:
    log = KeeperLog(tmp_path / "log")
    for number in range(3 * 2**20 // 60_000):
        log.write(b"%03d" % number + b"x" * 59_997)
    log.close()
    whole = LogReader(tmp_path / "log")
    records = whole.read(2**30)
    whole.close()
    assert len(records) > 50
    for record in records:
        reader = LogReader(tmp_path / "log", record.sequence)
        assert reader.read(1) == [record]
        reader.close()
