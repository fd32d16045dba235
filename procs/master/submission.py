"""What a client submits, checked, and the assignment that it becomes. Pure."""

import re
import secrets

import msgspec
from google.protobuf import duration_pb2

from procs.master.core import Demand
from shared.pb import hivemind_pb2 as pb

MOST_BYTES = 12 * 2**20  # of a serialized assignment; messages may have 16 MiB
INLINE_BYTES = 2**20  # of one input
INLINE_TOTAL_BYTES = 4 * 2**20  # of all of a task: what is over it is fetched
TASK_ID = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
NETWORKS = {
    "": pb.NETWORK_POLICY_UNSPECIFIED,
    "none": pb.NETWORK_POLICY_NONE,
    "egress": pb.NETWORK_POLICY_EGRESS,
}
UINT64_MAX, UINT32_MAX, INT32_MAX = 2**64 - 1, 2**32 - 1, 2**31 - 1


class SubmissionError(Exception):
    """The client asks for something that no node could be asked for."""


class Input(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A file of the task, uploaded before under its digest."""

    path: str
    sha256: str
    size_bytes: int
    unpack: bool = False


class Submission(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A task as a client asks for it. 0 or empty: the node's default."""

    task_id: str = ""  # chosen by the client, so that it can submit again safely
    image: str = ""
    command: list[str] = []
    environment: dict[str, str] = {}
    secrets: dict[str, str] = {}
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_memory_bytes: int = 0
    disk_bytes: int = 0
    processes: int = 0
    timeout_s: float = 0.0
    stop_grace_s: float = 0.0
    priority: int = 0
    network: str = ""
    inputs: list[Input] = []
    requirements: list[str] = []
    output_globs: list[str] = []
    output_limit_bytes: int = 0
    log_limit_bytes: int = 0
    labels: dict[str, str] = {}
    min_trust_level: int = 0


def parse(body: bytes) -> Submission:
    """The submission in a JSON body, with every figure in its range."""
    try:
        submission = msgspec.json.decode(body, type=Submission)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise SubmissionError(f"the body is no task: {err}") from err
    for name, value, most in _ranges(submission):
        if not 0 <= value <= most:
            raise SubmissionError(f"{name} is {value}: it must be from 0 to {most}")
    if not -INT32_MAX <= submission.priority <= INT32_MAX:
        raise SubmissionError(f"priority is {submission.priority}: that is no 32-bit number")
    if submission.network not in NETWORKS:
        raise SubmissionError(f"network is {submission.network!r}: it may be none or egress")
    submission.task_id = submission.task_id or f"task-{secrets.token_hex(8)}"
    if not TASK_ID.fullmatch(submission.task_id):
        raise SubmissionError("task_id: 1 to 64 of A-Z, a-z, 0-9, _ . - and not only dots")
    _check_inputs(submission.inputs)
    return submission


def assignment(submission: Submission) -> pb.TaskAssignmentRequest:
    """The assignment without its secrets, its attempt and the content of its inputs."""
    request = pb.TaskAssignmentRequest(
        task_id=submission.task_id,
        image=submission.image,
        command=submission.command,
        environment=submission.environment,
        resources=_resources(submission),
        priority=submission.priority,
        network=NETWORKS[submission.network],
        inputs=[
            pb.TaskInput(
                path=i.path,
                size_bytes=i.size_bytes,
                sha256=bytes.fromhex(i.sha256),
                unpack=i.unpack,
            )
            for i in submission.inputs
        ],
        requirements=submission.requirements,
        output_globs=submission.output_globs,
        output_limit_bytes=submission.output_limit_bytes,
        log_limit_bytes=submission.log_limit_bytes,
        labels=submission.labels,
        min_trust_level=submission.min_trust_level,
    )
    if submission.timeout_s:
        request.timeout.CopyFrom(_duration(submission.timeout_s))
    if submission.stop_grace_s:
        request.stop_grace.CopyFrom(_duration(submission.stop_grace_s))
    return request


def to_inline(inputs: list[Input]) -> list[int]:
    """Which inputs travel inside the assignment: the small ones, as many as have room."""
    chosen: list[int] = []
    total = 0
    for index, one in enumerate(inputs):
        if 0 < one.size_bytes <= INLINE_BYTES and total + one.size_bytes <= INLINE_TOTAL_BYTES:
            chosen.append(index)
            total += one.size_bytes
    return chosen


def check_size(request: pb.TaskAssignmentRequest, task_secrets: dict[str, str]) -> None:
    whole = pb.TaskAssignmentRequest(secrets=task_secrets)
    size = request.ByteSize() + whole.ByteSize()
    if size > MOST_BYTES:
        raise SubmissionError(
            f"the task has {size} bytes without its larger inputs: {MOST_BYTES} are the most"
        )


def demand(submission: Submission) -> Demand:
    return Demand(
        cpus=submission.cpus,
        memory_bytes=submission.memory_bytes,
        disk_bytes=submission.disk_bytes,
        gpus=submission.gpus,
        gpu_memory_bytes=submission.gpu_memory_bytes,
        min_trust_level=submission.min_trust_level,
        labels=submission.labels,
    )


def _ranges(s: Submission) -> list[tuple[str, float, float]]:
    return [
        ("cpus", s.cpus, 1e6),
        ("memory_bytes", s.memory_bytes, UINT64_MAX),
        ("gpus", s.gpus, UINT32_MAX),
        ("gpu_memory_bytes", s.gpu_memory_bytes, UINT64_MAX),
        ("disk_bytes", s.disk_bytes, UINT64_MAX),
        ("processes", s.processes, UINT32_MAX),
        ("timeout_s", s.timeout_s, 1e9),
        ("stop_grace_s", s.stop_grace_s, 1e9),
        ("output_limit_bytes", s.output_limit_bytes, UINT64_MAX),
        ("log_limit_bytes", s.log_limit_bytes, UINT64_MAX),
        ("min_trust_level", s.min_trust_level, UINT32_MAX),
    ]


def _check_inputs(inputs: list[Input]) -> None:
    paths: set[str] = set()
    for one in inputs:
        parts = one.path.split("/")
        if not one.path or any(p in ("", ".", "..") for p in parts) or "\0" in one.path:
            raise SubmissionError(f"input {one.path!r}: its path must be relative, below /task")
        if one.path in paths:
            raise SubmissionError(f"input {one.path!r} is there twice")
        if not SHA256.fullmatch(one.sha256):
            raise SubmissionError(f"input {one.path!r}: sha256 must be 64 lower-case hex digits")
        if not 0 <= one.size_bytes <= UINT64_MAX:
            raise SubmissionError(f"input {one.path!r}: size_bytes is {one.size_bytes}")
        paths.add(one.path)


def _resources(s: Submission) -> pb.Resources:
    return pb.Resources(
        cpus=s.cpus,
        memory_bytes=s.memory_bytes,
        gpus=s.gpus,
        gpu_memory_bytes=s.gpu_memory_bytes,
        disk_bytes=s.disk_bytes,
        processes=s.processes,
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
