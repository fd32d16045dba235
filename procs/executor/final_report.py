"""The final report of an attempt, of its run record, its samples and its verdict. Pure.

Every figure that can be known is there. Where the keeper wrote no end, the last sample says what
was used; a record's times are the task's own word, and lie in no future.
"""

from dataclasses import dataclass

from procs.executor.attempt import Attempt
from procs.executor.collect import Packed
from procs.executor.gpus import named
from procs.executor.quota import Grant
from procs.executor.run_record import RunRecord
from procs.executor.verdict import NEVER_RAN, Verdict
from shared.messages import TaskPhase
from shared.taskdir import Report

NANOS = 1e9


@dataclass(frozen=True)
class Now:
    """Both clocks at one moment, and the boot that the monotonic one counts from."""

    unix_s: float
    monotonic_s: float
    boot_id: str


def final_report(
    attempt: Attempt, record: RunRecord, verdict: Verdict, packed: Packed, runtime: str, now: Now
) -> Report:
    spec, ended = attempt.spec, record.ended
    began = min(record.started.unix_ns / NANOS, now.unix_s) if record.started else None
    finished = min(ended.unix_ns / NANOS, now.unix_s) if ended else now.unix_s
    prepared = attempt.entered_unix_s(TaskPhase.PREPARING)
    run_s, cpu_s = _run_s(record, now), _cpu_s(attempt, record)
    return Report(
        task_id=spec.task_id,
        attempt=spec.attempt,
        phase=verdict.phase,
        exit_code=verdict.exit_code if record.started else NEVER_RAN,
        error=verdict.sentence,
        cause=verdict.cause,
        accepted_unix_s=spec.accepted_unix_s,
        started_unix_s=began,
        finished_unix_s=max(finished, began or 0),
        pull_s=attempt.pull_s,
        prepare_s=max((began or now.unix_s) - prepared, 0) if prepared else 0,
        run_s=run_s,
        cpu_s=cpu_s,
        cpu_pct_average=_cpu_pct(cpu_s, run_s, attempt.grant),
        memory_peak_bytes=_memory_peak(attempt, record),
        memory_pct_average=_memory_pct(attempt, record),
        gpu_pct_average=_gpu_pct(attempt),
        gpu_uuids=named(attempt.grant.gpus) if attempt.grant and record.started else (),
        network_received_bytes=_counted(attempt, record, "network_received_bytes"),
        network_sent_bytes=_counted(attempt, record, "network_sent_bytes"),
        block_read_bytes=_counted(attempt, record, "block_read_bytes"),
        block_written_bytes=_counted(attempt, record, "block_written_bytes"),
        image_digest=attempt.image_digest,
        runtime=runtime,
        oom_kills=(ended.oom_kills or 0) if ended else 0,
        output_sha256=packed.sha256,
        output_bytes=packed.size_bytes,
        output_files=packed.files,
        log_bytes_dropped=ended.log_dropped_bytes if ended else 0,
        phases=attempt.phases,
        image=spec.image,
        command=attempt.held().command,
    )


def _run_s(record: RunRecord, now: Now) -> float:
    """Without an end: up to now, if the machine has run since."""
    started, ended = record.started, record.ended
    if started is None:
        return 0.0
    began_s = started.monotonic_ns / NANOS
    if ended is not None:
        return max(ended.monotonic_ns / NANOS - began_s, 0.0)
    if not started.boot_id:  # gVisor's monotonic clock is not the host's
        return max(now.unix_s - started.unix_ns / NANOS, 0.0)
    return max(now.monotonic_s - began_s, 0.0) if started.boot_id == now.boot_id else 0.0


def _cpu_s(attempt: Attempt, record: RunRecord) -> float | None:
    if record.ended is not None and record.ended.cpu_ns is not None:
        return record.ended.cpu_ns / NANOS
    return attempt.last_use.cpu_ns / NANOS if attempt.last_use else None


def _memory_peak(attempt: Attempt, record: RunRecord) -> int | None:
    if record.ended is not None and record.ended.memory_peak_bytes is not None:
        return record.ended.memory_peak_bytes
    return attempt.memory_peak_bytes or None


def _counted(attempt: Attempt, record: RunRecord, name: str) -> int:
    """The keeper's last word or, where it has none, the last sample."""
    last: int | None = getattr(record.ended, name, None)
    sampled: int = getattr(attempt.use, name, 0)
    return sampled if last is None else last


def _cpu_pct(cpu_s: float | None, run_s: float, granted: Grant | None) -> float:
    if not cpu_s or not run_s or granted is None:
        return 0.0
    return round(min(100 * cpu_s / (run_s * granted.cpus), 100.0), 3)


def _gpu_pct(attempt: Attempt) -> float:
    """Its cards' mean use; of a task that was shorter than a sample nothing is known."""
    return round(attempt.gpu_sum_pct / max(attempt.gpu_samples, 1), 3)


def _memory_pct(attempt: Attempt, record: RunRecord) -> float:
    """The mean of the samples; of a task that was shorter than a sample, its peak."""
    if attempt.memory_samples:
        return round(attempt.memory_sum_pct / attempt.memory_samples, 3)
    peak = _memory_peak(attempt, record)
    if not peak or attempt.grant is None:
        return 0.0
    return round(min(100 * peak / attempt.grant.memory_bytes, 100.0), 3)
