"""Our values <-> the contract's messages, one function each. Pure."""

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from shared.messages import (
    Alert,
    Engine,
    GpuLoad,
    GpuSample,
    HostLoad,
    NodePhase,
    ProcessState,
    TaskPhase,
    TaskState,
    Tunnel,
)
from shared.pb import hivemind_pb2 as pb
from shared.rewards import reward
from shared.sentences import Refusal
from shared.taskdir import Report, TaskKey

STATES: dict[TaskPhase, pb.TaskState] = {
    phase: getattr(pb, f"TASK_STATE_{phase.name}") for phase in TaskPhase
}
NODE_STATES: dict[NodePhase, pb.NodeState] = {
    phase: getattr(pb, f"NODE_STATE_{phase.name}") for phase in NodePhase
}
NODE_PHASES = {state: phase for phase, state in NODE_STATES.items()}
CAUSES: dict[str, pb.FailureCause] = {
    name.removeprefix("FAILURE_CAUSE_"): getattr(pb, name) for name, _ in pb.FailureCause.items()
}
REFUSALS: dict[Refusal, pb.Refusal] = {code: getattr(pb, f"REFUSAL_{code}") for code in Refusal}
ARCHIVE_FORMAT = "tar.gz"
NANOS = 1_000_000_000
UINT32_MAX = 2**32 - 1


def timestamp(unix_s: float) -> Timestamp:
    return timestamp_ns(round(unix_s * 1e6) * 1000)


def timestamp_ns(unix_ns: int) -> Timestamp:
    return Timestamp(seconds=unix_ns // NANOS, nanos=unix_ns % NANOS)


def duration(seconds: float) -> Duration:
    nanos = max(0, round(seconds * NANOS))
    return Duration(seconds=nanos // NANOS, nanos=nanos % NANOS)


def seconds(value: Duration | Timestamp) -> float:
    return float(value.seconds + value.nanos / NANOS)


def desired(state: pb.NodeState) -> NodePhase:
    """What the master wishes; a value that is unknown here wishes nothing."""
    return NODE_PHASES.get(state, NodePhase.READY)


def key_of(message: pb.TaskRef | pb.TaskCancelRequest | pb.TaskAssignmentRequest) -> TaskKey:
    return TaskKey(message.task_id, message.attempt)


# ------------------------------------------------------------------ the node


def inventory(load: HostLoad | None, engine: Engine, gpus: Iterable[GpuLoad]) -> pb.NodeInventory:
    known = pb.NodeInventory()
    if load is not None:
        known.operating_system = load.inventory.operating_system
        known.kernel = load.inventory.kernel
        known.architecture = load.inventory.architecture
        known.cpu_count = load.inventory.cpu_count
        known.memory_bytes = load.inventory.memory_bytes
        known.disk_bytes = load.disk_free_bytes
        known.cpu_score = load.inventory.cpu_score
    if engine.version:
        known.container_engine = f"docker {engine.version}"
    known.container_runtimes.extend(sorted(engine.runtimes))
    known.gpus.extend(  # of those that a task may have: masters count them
        _gpu(sample, seen.gpu_set) for seen in gpus for sample in seen.gpus if sample.is_whole
    )
    return known


def _gpu(sample: GpuSample, gpu_set: str) -> pb.Gpu:
    return pb.Gpu(
        uuid=sample.uuid,
        index=max(sample.index, 0),  # -1: not known, while it is lost
        name=sample.name,
        memory_bytes=sample.memory_total_bytes,
        driver_version=sample.driver_version,
        gpu_set=gpu_set,
    )


def tunnel(vpn: pb.VpnAssignment) -> Tunnel:
    return Tunnel(
        address=vpn.address,
        server_public_key=vpn.server_public_key,
        endpoint=vpn.endpoint,
        allowed_ips=tuple(vpn.allowed_ips),
        dns=tuple(vpn.dns),
    )


def components(state: ProcessState | None) -> list[pb.ComponentStatus]:
    if state is None:
        return []
    return [
        pb.ComponentStatus(
            name=program.name,
            state=program.state,
            restarts=program.restarts,
            since=timestamp(program.since_unix_s),
        )
        for program in state.processes
    ]


def alert(raised: Alert) -> pb.Alert:
    message = pb.Alert(
        rule=raised.rule,
        subject=raised.subject,
        value=raised.value,
        threshold=raised.threshold,
        raised_at=timestamp(raised.raised_unix_s),
    )
    if raised.cleared_unix_s is not None:
        message.cleared_at.CopyFrom(timestamp(raised.cleared_unix_s))
    return message


def task_use(state: TaskState | None) -> list[pb.TaskUsage]:
    return [
        pb.TaskUsage(
            task_id=task.task_id,
            attempt=task.attempt,
            cpu_percent=task.use.cpu_pct,
            memory_used_bytes=task.use.memory_bytes,
        )
        for task in (state.tasks if state is not None else ())
        if task.use is not None
    ]


# ------------------------------------------------------------------ a task


def task_ref(key: TaskKey, phase: TaskPhase) -> pb.TaskRef:
    return pb.TaskRef(task_id=key.task_id, attempt=key.attempt, state=STATES[phase])


def status(node_id: str, key: TaskKey, phase: TaskPhase, detail: str, at_unix_s: float) -> (
    pb.TaskStatusRequest
):  # fmt: skip
    return pb.TaskStatusRequest(
        node_id=node_id,
        task_id=key.task_id,
        attempt=key.attempt,
        state=STATES[phase],
        detail=detail,
        at=timestamp(at_unix_s),
    )


def result(report: Report, node_id: str, log_records: int) -> pb.TaskResultRequest:
    """The attempt's end as the master is told it."""
    message = pb.TaskResultRequest(
        node_id=node_id,
        task_id=report.task_id,
        attempt=report.attempt,
        state=STATES[report.phase],
        exit_code=report.exit_code,
        error=report.error,
        report=_execution(report),
        log_records=log_records,
        reward=reward(report.cpu_pct_average, report.memory_pct_average, report.gpu_pct_average),
        cause=_cause(report),
    )
    if report.output_sha256:
        message.output.CopyFrom(
            pb.OutputArchive(
                sha256=bytes.fromhex(report.output_sha256),
                size_bytes=report.output_bytes,
                files=min(report.output_files, UINT32_MAX),
                format=ARCHIVE_FORMAT,
            )
        )
    return message


def _cause(report: Report) -> pb.FailureCause:
    if report.phase is not TaskPhase.FAILED:
        return pb.FAILURE_CAUSE_UNSPECIFIED
    return CAUSES.get(report.cause.upper(), pb.FAILURE_CAUSE_NODE)


def _execution(report: Report) -> pb.ExecutionReport:
    message = pb.ExecutionReport(
        accepted_at=timestamp(report.accepted_unix_s),
        finished_at=timestamp(report.finished_unix_s),
        pull_time=duration(report.pull_s),
        prepare_time=duration(report.prepare_s),
        run_time=duration(report.run_s),
        cpu_percent_average=report.cpu_pct_average,
        memory_peak_bytes=report.memory_peak_bytes or 0,
        memory_percent_average=report.memory_pct_average,
        gpu_percent_average=report.gpu_pct_average,
        network_received_bytes=report.network_received_bytes,
        network_sent_bytes=report.network_sent_bytes,
        block_read_bytes=report.block_read_bytes,
        block_written_bytes=report.block_written_bytes,
        image_digest=report.image_digest,
        runtime=report.runtime,
        gpu_uuids=report.gpu_uuids,
        oom_kills=min(report.oom_kills, UINT32_MAX),  # of a run record: the task's own word
    )
    if report.started_unix_s is not None:
        message.started_at.CopyFrom(timestamp(report.started_unix_s))
    if report.cpu_s is not None:
        message.cpu_time.CopyFrom(duration(report.cpu_s))
    return message
