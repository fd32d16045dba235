"""The final report: what the keeper wrote, else what was sampled, and nothing from the future."""

from dataclasses import replace
from pathlib import Path

import pytest

from procs.executor.attempt import Attempt
from procs.executor.cgroup import Use
from procs.executor.collect import Packed
from procs.executor.final_report import Now, final_report
from procs.executor.quota import Grant
from procs.executor.run_record import Ended, RunRecord, Started
from procs.executor.verdict import Verdict
from procs.master_link import wire
from shared.messages import PhaseAt, TaskPhase, TaskUse
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import MIB, Report, Spec

BOOT = "11111111-2222-3333-4444-555555555555"
NOW = Now(unix_s=1030.0, monotonic_s=530.0, boot_id=BOOT)
STARTED = Started(int(1010e9), int(510e9), BOOT)
ENDED = Ended(
    unix_ns=int(1020e9), monotonic_ns=int(520e9), code=3, signal=0, max_rss_bytes=5 * MIB,
    memory_peak_bytes=60 * MIB, cpu_ns=int(4e9), oom_kills=2, log_dropped_bytes=7, log_lost_bytes=0,
)  # fmt: skip
GRANT = Grant(cpus=0.5, memory_bytes=100 * MIB, disk_bytes=MIB, processes=8)
FAILED = Verdict(TaskPhase.FAILED, 3, "exit", "the command exited 3")


def attempt() -> Attempt:
    made = Attempt(Spec(task_id="t", attempt=2, image="i", accepted_unix_s=1000.0), Path("/d"))
    made.phases = (
        PhaseAt(phase=TaskPhase.ACCEPTED, at_unix_s=1000.0),
        PhaseAt(phase=TaskPhase.PREPARING, at_unix_s=1004.0),
    )
    made.grant = GRANT
    made.pull_s, made.image_digest = 2.5, "sha256:abc"
    return made


def sampled() -> Attempt:
    made = attempt()
    made.last_use = Use(cpu_ns=int(6e9), memory_bytes=30 * MIB)
    made.use = TaskUse(
        cpu_pct=1, memory_bytes=1, network_received_bytes=11, network_sent_bytes=12,
        block_read_bytes=13, block_written_bytes=14,
    )  # fmt: skip
    made.memory_sum_pct, made.memory_samples, made.memory_peak_bytes = 80.0, 2, 50 * MIB
    return made


def report(made: Attempt, record: RunRecord, verdict: Verdict = FAILED) -> Report:
    return final_report(made, record, verdict, Packed("ab" * 32, 9, 1), "runc", NOW)


def test_each_field_of_the_contract_is_there() -> None:
    made = replace(sampled(), gpu_sum_pct=90.0, gpu_samples=2)
    made.grant = replace(GRANT, gpus=("GPU-1",))
    sent = wire.result(report(made, RunRecord(STARTED, None, ENDED)), "node", 5)
    missing = {
        field.name
        for field in pb.ExecutionReport.DESCRIPTOR.fields
        if field.name not in {found.name for found, _ in sent.report.ListFields()}
    }
    assert missing == set()
    found = sent.report
    assert wire.seconds(found.accepted_at) == 1000
    assert wire.seconds(found.started_at) == 1010
    assert wire.seconds(found.finished_at) == 1020
    assert wire.seconds(found.pull_time) == 2.5
    assert wire.seconds(found.prepare_time) == 6
    assert wire.seconds(found.run_time) == 10
    assert wire.seconds(found.cpu_time) == 4
    assert found.cpu_percent_average == 80
    assert found.memory_peak_bytes == 60 * MIB
    assert found.memory_percent_average == 40
    assert found.gpu_percent_average == 45
    assert (found.network_received_bytes, found.network_sent_bytes) == (11, 12)
    assert (found.block_read_bytes, found.block_written_bytes) == (13, 14)
    assert (found.image_digest, found.runtime, found.oom_kills) == ("sha256:abc", "runc", 2)
    assert list(found.gpu_uuids) == ["GPU-1"]
    assert (sent.exit_code, sent.cause, sent.log_records) == (3, pb.FAILURE_CAUSE_EXIT, 5)


def test_without_an_end_the_samples_speak() -> None:
    found = report(sampled(), RunRecord(STARTED, None, None))
    assert (found.run_s, found.cpu_s, found.cpu_pct_average) == (20.0, 6.0, 60.0)
    assert (found.memory_peak_bytes, found.memory_pct_average) == (50 * MIB, 40.0)
    assert (found.started_unix_s, found.finished_unix_s) == (1010.0, 1030.0)


def test_after_a_reboot_nobody_knows_how_long_it_ran() -> None:
    other = replace(STARTED, boot_id="99999999-2222-3333-4444-555555555555")
    assert report(attempt(), RunRecord(other, None, None)).run_s == 0


def test_in_gvisor_the_wall_clock_says_it() -> None:
    assert report(attempt(), RunRecord(replace(STARTED, boot_id=""), None, None)).run_s == 20


def test_what_never_ran_has_no_run() -> None:
    found = report(attempt(), RunRecord(None, None, None), Verdict(TaskPhase.FAILED, 7, "image"))
    assert (found.exit_code, found.started_unix_s, found.run_s, found.cpu_s) == (-1, None, 0, None)
    assert (found.prepare_s, found.finished_unix_s, found.gpu_uuids) == (26.0, 1030.0, ())


@pytest.mark.parametrize("year", [2**62, 2**63 - 1])
def test_a_forged_record_ends_in_no_future(year: int) -> None:
    started, ended = replace(STARTED, unix_ns=year), replace(ENDED, unix_ns=year)
    found = report(attempt(), RunRecord(started, None, ended))
    assert (found.started_unix_s, found.finished_unix_s) == (1030.0, 1030.0)
    wire.result(found, "node", 0)


def test_an_end_before_its_start_is_none() -> None:
    ended = replace(ENDED, unix_ns=1, monotonic_ns=1)
    found = report(attempt(), RunRecord(STARTED, None, ended))
    assert (found.run_s, found.finished_unix_s) == (0, 1010.0)
