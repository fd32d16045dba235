"""The samples' database: real SQLite files."""

import logging
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from procs.monitor.gpu_store import MOST_GPUS
from procs.monitor.store import KEEP_S, MIGRATIONS, MOST_CORES, Store, StoreError
from procs.monitor.writer import BATCH, Writer
from shared.database import open_database
from shared.messages import GpuSample, HostLoad
from tests.fakes.supervised import until

LOG = logging.getLogger("test")
NOON = 1_800_000_000 - 1_800_000_000 % 60


def load(cpu_pct: float = 10.0, **fields: float | None) -> HostLoad:
    return HostLoad(at_s=0.0, cpu_pct=cpu_pct, **fields)  # type: ignore[arg-type]


def rows(path: Path, what: str) -> list[tuple[Any, ...]]:
    """As a reader does it: one connection, mode=ro."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return database.execute(f"SELECT {what}").fetchall()
    finally:
        database.close()


def test_coarser_rows_are_averages_of_the_finer(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    for tens in range(0, 120, 10):
        store.write([(NOON + tens + i, load(float(tens + i))) for i in range(10)])
    at = "cpu_pct FROM samples WHERE resolution_s = {} AND at_unix_s = {}"
    assert rows(tmp_path / "load.db", at.format(10, NOON + 10)) == [(14.5,)]
    assert rows(tmp_path / "load.db", at.format(60, NOON)) == [(29.5,)]
    assert rows(tmp_path / "load.db", at.format(60, NOON + 60)) == [(89.5,)]
    store.close()


def test_a_batch_that_crosses_a_boundary_completes_both_sides(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON + i, load(float(i))) for i in range(5)])
    store.write([(NOON + i, load(float(i))) for i in range(5, 15)])
    found = rows(
        tmp_path / "load.db",
        "at_unix_s, cpu_pct FROM samples WHERE resolution_s = 10 ORDER BY at_unix_s",
    )
    assert found == [(NOON, 4.5), (NOON + 10, 12.0)]
    store.close()


def test_unknown_pressure_stays_unknown(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON, load(pressure_cpu_pct=None)), (NOON + 1, load(pressure_io_pct=3.0))])
    what = "pressure_cpu_pct, pressure_io_pct FROM samples WHERE resolution_s = 10"
    assert rows(tmp_path / "load.db", what) == [(None, 3.0)]
    store.close()


def test_each_core_has_its_averages(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    for second, cores in enumerate([(9, 9), (0, 100, 7), (50, 100, 8), ()]):
        store.write([(NOON + second, msgspec.structs.replace(load(), cores_pct=cores))])
    many = msgspec.structs.replace(load(), cores_pct=(1,) * (MOST_CORES + 1))
    store.write([(NOON + 4, many), (NOON + 10, many)])
    found = "cores_pct FROM samples WHERE resolution_s = {} ORDER BY at_unix_s"
    seconds = rows(tmp_path / "load.db", found.format(1))
    assert seconds[:2] == [(b"\x09\x09",), (b"\x00\x64\x07",)]
    assert seconds[3:] == [(b"",), (None,), (None,)]
    assert rows(tmp_path / "load.db", found.format(10)) == [(b"",), (None,)], "as many as the last"
    store.write([(NOON + 3, msgspec.structs.replace(load(), cores_pct=(10, 100, 9)))])
    assert rows(tmp_path / "load.db", found.format(10))[0] == (b"\x14\x64\x08",)
    store.close()


@pytest.mark.parametrize("resolution", sorted(KEEP_S))
def test_each_resolution_is_kept_its_time(tmp_path: Path, resolution: int) -> None:
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON, load())])
    count = f"count(*) FROM samples WHERE resolution_s = {resolution} AND at_unix_s = {NOON}"
    store.write([(NOON + KEEP_S[resolution], load())])
    assert rows(tmp_path / "load.db", count) == [(1,)]
    store.write([(NOON + KEEP_S[resolution] + 1, load())])
    assert rows(tmp_path / "load.db", count) == [(0,)]
    store.close()


def test_a_week_is_small_and_ends(tmp_path: Path) -> None:
    assert sum(age // resolution for resolution, age in KEEP_S.items()) < 25_000
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON + i, load()) for i in range(0, 4 * 3600)])
    count = "count(*) FROM samples WHERE resolution_s = 1"
    assert rows(tmp_path / "load.db", count) == [(3601,)]
    store.close()


def test_rows_of_a_clock_that_ran_ahead_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON + 86_400, load())])
    store.write([(NOON, load())])
    assert rows(tmp_path / "load.db", "max(at_unix_s) FROM samples") == [(NOON,)]
    store.close()


@pytest.mark.parametrize(
    "content", [pytest.param(b"no database at all" * 100, id="text"), pytest.param(b"", id="empty")]
)
def test_a_file_that_is_no_database_is_set_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "load.db"
    path.write_bytes(content)
    store = Store(path, LOG)
    store.write([(NOON, load())])
    store.close()
    assert rows(path, "count(*) FROM samples WHERE resolution_s = 1") == [(1,)]
    aside = list(tmp_path.glob("load.db.broken-*"))
    assert [part.read_bytes() for part in aside] == ([content] if content else [])
    assert ("set aside" in caplog.text) == bool(content)


def test_a_database_that_breaks_while_it_is_written_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "load.db"
    store = Store(path, LOG)
    store.write([(NOON + i, load()) for i in range(2000)])
    store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200_000)
    again = Store(path, LOG)
    again.write([(NOON, load())])
    again.close()
    assert rows(path, "count(*) FROM samples WHERE resolution_s = 1") == [(1,)]
    assert "is broken" in caplog.text


def test_a_newer_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "load.db"
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(match=f"has version {len(MIGRATIONS) + 1}, this"):
        Store(path, LOG)
    assert path.read_bytes() == before
    writer = Writer(path, LOG)
    assert until(lambda: writer.newer_version, "the writer knows") == len(MIGRATIONS) + 1
    writer.add((NOON, load()))
    assert writer.is_alive
    writer.close()
    assert path.read_bytes() == before


def test_a_disk_that_takes_no_more_is_said_and_not_fatal(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON, load())])
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        store.write([(NOON + i, load()) for i in range(3000)])
    store.write([(NOON + 1, load())])
    assert rows(tmp_path / "load.db", "count(*) FROM samples WHERE resolution_s = 1") == [(2,)]
    store.close()


def test_a_full_file_makes_room_for_what_comes(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON + i, load()) for i in range(2000)])
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    later = [(NOON + 7200 + i, load()) for i in range(1000)]
    with pytest.raises(StoreError, match="full"):
        store.write(later)
    store.write(later)
    assert rows(tmp_path / "load.db", "count(*) FROM samples WHERE resolution_s = 1") == [(1000,)]
    store.close()


def test_the_writer_writes_a_batch_and_what_is_left_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "load.db"
    writer = Writer(path, LOG)
    for second in range(BATCH):
        writer.add((NOON + second, load()))
    count = "count(*) FROM samples WHERE resolution_s = 1"
    until(lambda: (path.exists() and _count(path, count) == BATCH) or None, "the batch is written")
    writer.add((NOON + BATCH, load()))
    writer.close()
    assert rows(path, count) == [(BATCH + 1,)]


def _count(path: Path, what: str) -> int | None:
    try:
        return int(rows(path, what)[0][0])
    except sqlite3.OperationalError:
        return None  # not made yet: no news


def test_a_reader_sees_what_a_killed_writer_wrote(tmp_path: Path) -> None:
    path = tmp_path / "load.db"
    killed = Store(path, LOG)
    killed.write([(NOON, load(42.0))])
    for suffix in ("", "-wal", "-shm"):  # as it lies there when the writer is killed
        part = path.with_name(path.name + suffix)
        (tmp_path / f"copy.db{suffix}").write_bytes(part.read_bytes())
    killed.close()
    assert rows(tmp_path / "copy.db", "cpu_pct FROM samples WHERE resolution_s = 1") == [(42.0,)]


# ------------------------------------------------------------------ GPUs


def gpu(uuid: str, util_pct: float | None = None, reachable: bool = True) -> GpuSample:
    return GpuSample(index=0, uuid=uuid, name="H", util_pct=util_pct, reachable=reachable)


def of_gpu(uuid: str, resolution: int) -> str:
    return (
        "at_unix_s, util_pct, power_w FROM gpu_samples JOIN gpus ON number = gpu"
        f" WHERE uuid = '{uuid}' AND resolution_s = {resolution} ORDER BY at_unix_s"
    )


def test_each_gpu_has_samples_and_averages_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    for second in range(0, 20, 5):
        at = NOON + second
        store.write([(at, load()), (at, gpu("a", float(second))), (at, gpu("b"))])
    store.write([(NOON + 15, load()), (NOON + 15, gpu("b", 50.0, reachable=False))])
    path = tmp_path / "load.db"
    assert rows(path, of_gpu("a", 10)) == [(NOON, 2.5, None), (NOON + 10, 12.5, None)]
    assert rows(path, of_gpu("a", 60)) == [(NOON, 7.5, None)]
    assert rows(path, of_gpu("b", 60)) == [(NOON, None, None)], "what it does not tell is not 0"
    store.close()


def test_samples_of_a_gpu_go_with_their_age_and_the_gpu_with_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON, load()), (NOON, gpu("a", 1.0))])
    store.write([(NOON + KEEP_S[60], load()), (NOON + KEEP_S[60], gpu("b", 1.0))])
    assert rows(tmp_path / "load.db", of_gpu("a", 60)) == [(NOON, 1.0, None)]
    store.write([(NOON + KEEP_S[60] + 1, load()), (NOON + KEEP_S[60] + 1, gpu("b", 1.0))])
    assert rows(tmp_path / "load.db", of_gpu("a", 60)) == []
    store.close()
    Store(tmp_path / "load.db", LOG).close()
    assert rows(tmp_path / "load.db", "count(*) FROM gpus WHERE uuid = 'a'") == [(0,)]


def test_of_no_more_gpus_than_fit_samples_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "load.db", LOG)
    store.write([(NOON, load()), *((NOON, gpu(f"{n:03}")) for n in range(MOST_GPUS + 5))])
    assert rows(tmp_path / "load.db", "count(*) FROM gpus") == [(MOST_GPUS,)]
    assert rows(tmp_path / "load.db", "count(*) FROM gpu_samples") == [(3 * MOST_GPUS,)]
    store.close()


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_an_older_database_is_taken_up(tmp_path: Path, version: int) -> None:
    path = tmp_path / "load.db"
    open_database(path, MIGRATIONS[:version], LOG, "NORMAL").close()
    store = Store(path, LOG)
    store.write([(NOON, load(tasks_cpu_pct=4.5)), (NOON, gpu("a", 1.0))])
    assert rows(path, of_gpu("a", 1)) == [(NOON, 1.0, None)]
    assert rows(path, "tasks_cpu_pct FROM samples WHERE resolution_s = 60") == [(4.5,)]
    store.close()
