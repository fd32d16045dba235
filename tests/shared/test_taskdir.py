"""Names of attempts, records that come back whole, and strangers among the directories."""

import os
from pathlib import Path

import msgspec
import pytest

from shared.messages import PhaseAt, TaskPhase
from shared.taskdir import (
    REPORT,
    SPEC,
    InputSpec,
    RecordError,
    Report,
    Spec,
    TaskKey,
    held,
    read_report,
    read_spec,
    write_record,
)
from tests.shared.polling import names

SPEC_FULL = Spec(
    task_id="job-1.b",
    attempt=3,
    image="debian:12",
    command=("sh", "-c", "exit 3"),
    environment={"A": "ü=1\n2"},
    cpus=1.5,
    memory_bytes=2**40,
    egress=True,
    inputs=(InputSpec(path="main.py", size_bytes=3, sha256="ab", inline=True),),
    digest="d",
)
REPORT_FULL = Report(
    task_id="job-1.b",
    attempt=3,
    phase=TaskPhase.OUT_OF_MEMORY,
    exit_code=137,
    error="killed",
    started_unix_s=None,
    memory_peak_bytes=2**33,
    phases=(PhaseAt(phase=TaskPhase.RUNNING, at_unix_s=1.25),),
)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        pytest.param("a.1", TaskKey("a", 1), id="plain"),
        pytest.param("job-1.b_2.17", TaskKey("job-1.b_2", 17), id="dots and dashes"),
        pytest.param("..a.1", TaskKey("..a", 1), id="dots before a letter"),
        pytest.param("1.2.3", TaskKey("1.2", 3), id="digits and dots"),
        pytest.param("a.4294967295", TaskKey("a", 2**32 - 1), id="largest attempt"),
        pytest.param("x" * 64 + ".1", TaskKey("x" * 64, 1), id="longest"),
        pytest.param("x" * 65 + ".1", None, id="too long"),
        pytest.param("a", None, id="no attempt"),
        pytest.param(".1", None, id="no task"),
        pytest.param("a.0", None, id="attempt 0"),
        pytest.param("a.01", None, id="a second name for attempt 1"),
        pytest.param("a.-1", None, id="negative"),
        pytest.param("a.1٣", None, id="a digit that is not ASCII"),
        pytest.param("a.1\n", None, id="newline after"),
        pytest.param("a\n.1", None, id="newline within"),
        pytest.param("...1", None, id="only dots"),
        pytest.param("../a.1", None, id="a way out"),
        pytest.param("a b.1", None, id="space"),
        pytest.param("ä.1", None, id="not ASCII"),
        pytest.param("a\0.1", None, id="NUL"),
        pytest.param("", None, id="empty"),
    ],
)
def test_a_name_means_an_attempt_or_nothing(name: str, key: TaskKey | None) -> None:
    assert TaskKey.parse(name) == key
    if key:
        assert key.directory == name


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    write_record(tmp_path / SPEC, SPEC_FULL)
    write_record(tmp_path / REPORT, REPORT_FULL)
    assert read_spec(tmp_path) == SPEC_FULL
    assert read_report(tmp_path) == REPORT_FULL
    assert names(tmp_path) == [REPORT, SPEC]


def test_a_record_of_a_newer_version_is_read(tmp_path: Path) -> None:
    fields = msgspec.json.decode(msgspec.json.encode(SPEC_FULL)) | {"invented": 1}
    (tmp_path / SPEC).write_bytes(msgspec.json.encode(fields))
    assert read_spec(tmp_path) == SPEC_FULL


def test_a_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / SPEC).write_bytes(b'{"task_id": "a", "attempt": 1, "image": "i"}')
    assert read_spec(tmp_path) == Spec(task_id="a", attempt=1, image="i")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b'{"task_id": "a"', id="cut short"),
        pytest.param(b'{"task_id": "a", "attempt": "1", "image": "i"}', id="wrong type"),
        pytest.param(b'{"task_id": "\xff", "attempt": 1, "image": "i"}', id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="nested without end"),
    ],
)
def test_a_broken_record_is_a_record_error_that_names_it(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / SPEC).write_bytes(content)
    with pytest.raises(RecordError, match=f"^{tmp_path / SPEC}: "):
        read_spec(tmp_path)


def test_text_that_is_not_unicode_does_not_lose_a_report(tmp_path: Path) -> None:
    report = msgspec.structs.replace(REPORT_FULL, error="can't pack \udcff")
    write_record(tmp_path / REPORT, report)
    assert read_report(tmp_path).error == "can't pack ?"


def test_only_attempts_whose_acceptance_is_on_disk_are_held(tmp_path: Path) -> None:
    for name in ("b.2", "a.1", "a.10", "not-ours", ".a.1.new", "c.1"):
        (tmp_path / name).mkdir()
    for name in ("b.2", "a.1", "a.10", "not-ours", ".a.1.new"):
        (tmp_path / name / SPEC).write_bytes(b"{}")
    (tmp_path / "d.1").write_bytes(b"a file")
    (tmp_path / os.fsdecode(b"\xff.1")).mkdir()
    assert held(tmp_path) == [TaskKey("a", 1), TaskKey("a", 10), TaskKey("b", 2)]


def test_a_home_without_tasks_holds_none(tmp_path: Path) -> None:
    assert held(tmp_path / "tasks") == []
