"""The wire's assignment -> the Spec that goes on disk, each field checked. Pure.

What is malformed is refused with a reason that begins with the field's name: the master then
sends it nowhere else. What merely does not fit here is shared/admission.py's to say.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence, Sized
from typing import NoReturn

from shared.images import ImageNameError, read_image
from shared.limits import start_fault
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import (
    DEFAULT_LOG_LIMIT_BYTES,
    DEFAULT_OUTPUT_LIMIT_BYTES,
    DEFAULT_STOP_GRACE_S,
    DEFAULT_TIMEOUT_S,
    TASK_ID,
    InputSpec,
    Spec,
)

MAX_ASSIGNMENT_BYTES = 16 * 2**20
MAX_INPUTS = 10_000  # 16 MiB of empty inputs would cost 700 MB of memory
MAX_INLINE_BYTES = 2**20
MAX_SIZE_BYTES = 2**63 - 1  # of what Docker and SQLite can count
MAX_PATH_BYTES, MAX_NAME_BYTES = 3800, 255  # the file system's own, less what stands before
MAX_LINES = 10_000  # requirements, globs, labels, each
MAX_PROCESSES = 2**22 - 1  # the kernel has no more, with the keeper's own
LEAST_CPUS = 0.01  # as Docker has it
DIGEST_BYTES = 32
NO_COMMAND = "the image's own"  # stands for it where the strings are counted


class Malformed(ValueError):
    """The assignment can't be carried out by any node; the text begins with the field."""


def read(request: pb.TaskAssignmentRequest, default_image: str, now_unix_s: float) -> Spec:
    """The checked assignment without its secrets' values; Malformed names the field."""
    if request.ByteSize() > MAX_ASSIGNMENT_BYTES:
        _refuse("task_id", f"the assignment is over {MAX_ASSIGNMENT_BYTES} bytes")
    _check_name(request)
    _check_strings(request)
    _check_resources(request.resources)
    _check_count("labels", request.labels)
    return Spec(
        task_id=request.task_id,
        attempt=request.attempt,
        image=_image(request.image) if request.image else default_image,
        command=tuple(request.command),
        environment=dict(request.environment),
        secret_names=tuple(sorted(request.secrets)),
        cpus=request.resources.cpus and max(request.resources.cpus, LEAST_CPUS),
        memory_bytes=request.resources.memory_bytes,
        gpus=request.resources.gpus,
        gpu_memory_bytes=request.resources.gpu_memory_bytes,
        disk_bytes=request.resources.disk_bytes,
        processes=min(request.resources.processes, MAX_PROCESSES),
        timeout_s=_timeout_s(request),
        stop_grace_s=_stop_grace_s(request),
        priority=request.priority,
        egress=request.network == pb.NETWORK_POLICY_EGRESS,
        inputs=_inputs(request.inputs),
        requirements=_lines("requirements", request.requirements),
        output_globs=_globs(request.output_globs),
        output_limit_bytes=_limit(
            "output_limit_bytes", request.output_limit_bytes, DEFAULT_OUTPUT_LIMIT_BYTES
        ),
        log_limit_bytes=_limit("log_limit_bytes", request.log_limit_bytes, DEFAULT_LOG_LIMIT_BYTES),
        labels=dict(request.labels),
        min_trust_level=request.min_trust_level,
        accepted_unix_s=now_unix_s,
        digest=digest(request),
    )


def digest(request: pb.TaskAssignmentRequest) -> str:
    """Of everything but the secrets' values, which must leave no trace on disk."""
    bare = pb.TaskAssignmentRequest()
    bare.CopyFrom(request)
    for name in request.secrets:
        bare.secrets[name] = ""
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _refuse(field: str, reason: str) -> NoReturn:
    raise Malformed(f"{field}: {reason}")


def _check_name(request: pb.TaskAssignmentRequest) -> None:
    if not TASK_ID.fullmatch(request.task_id):
        _refuse("task_id", "must be [A-Za-z0-9_.-]{1,64} and not only dots")
    if request.attempt < 1:
        _refuse("attempt", "must be 1 or more")


def _image(image: str) -> str:
    try:
        read_image(image)
    except ImageNameError as err:
        _refuse("image", str(err))
    return image


# ------------------------------------------------------------------ command and environment


def _check_strings(request: pb.TaskAssignmentRequest) -> None:
    for name in request.secrets:
        if name in request.environment:
            _refuse("secrets", f"{name} is in environment too")
    command = request.command or (NO_COMMAND,)
    fault = start_fault(command, request.environment)
    if fault is None:
        fault = start_fault(command, {**request.environment, **request.secrets})
        fault = fault and fault.replace("environment[", "secrets[", 1)
    if fault is not None:
        raise Malformed(fault)


# ------------------------------------------------------------------ numbers


def _check_resources(resources: pb.Resources) -> None:
    if not math.isfinite(resources.cpus) or resources.cpus < 0:
        _refuse("resources.cpus", "must be a number, 0 or more")
    for name in ("memory_bytes", "gpu_memory_bytes", "disk_bytes"):
        _limit(f"resources.{name}", getattr(resources, name), 0)


def _limit(field: str, value: int, default: int) -> int:
    if value > MAX_SIZE_BYTES:
        _refuse(field, f"is over {MAX_SIZE_BYTES}")
    return value or default


def _timeout_s(request: pb.TaskAssignmentRequest) -> float:
    if not request.HasField("timeout"):
        return DEFAULT_TIMEOUT_S
    timeout_s = request.timeout.seconds + request.timeout.nanos / 1e9
    if timeout_s <= 0:
        _refuse("timeout", "must be more than 0")
    return timeout_s


def _stop_grace_s(request: pb.TaskAssignmentRequest) -> float:
    if not request.HasField("stop_grace"):
        return DEFAULT_STOP_GRACE_S
    grace_s = request.stop_grace.seconds + request.stop_grace.nanos / 1e9
    if grace_s < 0:
        _refuse("stop_grace", "must be 0 or more")
    return grace_s


# ------------------------------------------------------------------ files


def _inputs(inputs: Iterable[pb.TaskInput]) -> tuple[InputSpec, ...]:
    listed = list(inputs)
    if len(listed) > MAX_INPUTS:
        _refuse("inputs", f"are over {MAX_INPUTS}")
    specs = tuple(_input(f"inputs[{number}]", item) for number, item in enumerate(listed))
    _check_overlap(specs)
    return specs


def _input(field: str, item: pb.TaskInput) -> InputSpec:
    _check_path(f"{field}.path", item.path)
    _limit(f"{field}.size_bytes", item.size_bytes, 0)
    if len(item.sha256) != DIGEST_BYTES:
        _refuse(f"{field}.sha256", f"must be {DIGEST_BYTES} bytes")
    if len(item.inline) > MAX_INLINE_BYTES:
        _refuse(f"{field}.inline", f"is over {MAX_INLINE_BYTES} bytes")
    inline = bool(item.inline) or item.size_bytes == 0
    if inline and len(item.inline) != item.size_bytes:
        _refuse(f"{field}.size_bytes", f"is {item.size_bytes}, inline has {len(item.inline)} bytes")
    if inline and hashlib.sha256(item.inline).digest() != item.sha256:
        _refuse(f"{field}.sha256", "is not the digest of the content")
    return InputSpec(
        path=item.path,
        size_bytes=item.size_bytes,
        sha256=item.sha256.hex(),
        unpack=item.unpack,
        inline=inline,
    )


def _check_path(field: str, path: str) -> None:
    parts = path.split("/")
    if "\0" in path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        _refuse(field, "must be relative, below its folder, without '.', '..' or empty names")
    if len(path.encode()) > MAX_PATH_BYTES or any(len(p.encode()) > MAX_NAME_BYTES for p in parts):
        _refuse(field, "is too long")


def _check_overlap(specs: tuple[InputSpec, ...]) -> None:
    """In the order of the paths, what lies below a file comes right after it."""
    above: InputSpec | None = None
    previous: InputSpec | None = None
    for parts, number in sorted((spec.path.split("/"), i) for i, spec in enumerate(specs)):
        spec = specs[number]
        if previous is not None and previous.path == spec.path:
            _refuse(f"inputs[{number}].path", f"{spec.path!r} comes twice")
        if above is not None and above.path.split("/") == parts[: above.path.count("/") + 1]:
            _refuse(f"inputs[{number}].path", f"lies in {above.path!r}, which is a file")
        previous, above = spec, above if spec.unpack else spec


def _check_count(field: str, items: Sized) -> None:
    if len(items) > MAX_LINES:
        _refuse(field, f"are over {MAX_LINES}")


def _lines(field: str, lines: Sequence[str]) -> tuple[str, ...]:
    _check_count(field, lines)
    for number, line in enumerate(lines):
        if re.search(r"[\0\r\n]", line) or not line.strip():
            _refuse(f"{field}[{number}]", "must be one line of text")
    return tuple(lines)


def _globs(globs: Sequence[str]) -> tuple[str, ...]:
    _check_count("output_globs", globs)
    for number, glob in enumerate(globs):
        _check_path(f"output_globs[{number}]", glob.rstrip("/"))
    return tuple(globs)
