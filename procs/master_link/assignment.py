"""The wire's assignment -> the Spec that goes on disk, each field checked. Pure.

What is malformed is refused with a reason that begins with the field's name: the master then
sends it nowhere else. What merely does not fit here is shared/admission.py's to say.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence, Sized

from shared import requirements, sentences
from shared.images import ImageNameError, read_image
from shared.limits import start_fault
from shared.pb import hivemind_pb2 as pb
from shared.sentences import Refusal, Said
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

    def __init__(self, said: Said[Refusal]) -> None:
        super().__init__(said.text)
        self.said = said


def read(request: pb.TaskAssignmentRequest, default_image: str, now_unix_s: float) -> Spec:
    """The checked assignment without its secrets' values; Malformed names the field."""
    if request.ByteSize() > MAX_ASSIGNMENT_BYTES:
        raise Malformed(sentences.ASSIGNMENT_TOO_LARGE.say(most=MAX_ASSIGNMENT_BYTES))
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
        requirements=_requirements(request.requirements),
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


def _check_name(request: pb.TaskAssignmentRequest) -> None:
    if not TASK_ID.fullmatch(request.task_id):
        raise Malformed(sentences.TASK_ID_INVALID.say())
    if request.attempt < 1:
        raise Malformed(sentences.ATTEMPT_INVALID.say())


def _image(image: str) -> str:
    try:
        read_image(image)
    except ImageNameError as err:
        raise Malformed(sentences.IMAGE_NAME_INVALID.say(image=image, fault=err)) from err
    return image


# ------------------------------------------------------------------ command and environment


def _check_strings(request: pb.TaskAssignmentRequest) -> None:
    for name in request.secrets:
        if name in request.environment:
            raise Malformed(sentences.SECRET_TWICE.say(name=name))
    command = request.command or (NO_COMMAND,)
    fault = start_fault(command, request.environment)
    if fault is None:
        fault = start_fault(command, {**request.environment, **request.secrets})
        fault = fault and fault.replace("environment[", "secrets[", 1)
    if fault is not None:
        raise Malformed(sentences.START_INVALID.say(fault=fault))


# ------------------------------------------------------------------ numbers


def _check_resources(resources: pb.Resources) -> None:
    if not math.isfinite(resources.cpus) or resources.cpus < 0:
        raise Malformed(sentences.CPUS_INVALID.say())
    for name in ("memory_bytes", "gpu_memory_bytes", "disk_bytes"):
        _limit(f"resources.{name}", getattr(resources, name), 0)


def _limit(field: str, value: int, default: int) -> int:
    if value > MAX_SIZE_BYTES:
        raise Malformed(sentences.SIZE_INVALID.say(field=field, most=MAX_SIZE_BYTES))
    return value or default


def _timeout_s(request: pb.TaskAssignmentRequest) -> float:
    if not request.HasField("timeout"):
        return DEFAULT_TIMEOUT_S
    timeout_s = request.timeout.seconds + request.timeout.nanos / 1e9
    if timeout_s <= 0:
        raise Malformed(sentences.TIMEOUT_INVALID.say())
    return timeout_s


def _stop_grace_s(request: pb.TaskAssignmentRequest) -> float:
    if not request.HasField("stop_grace"):
        return DEFAULT_STOP_GRACE_S
    grace_s = request.stop_grace.seconds + request.stop_grace.nanos / 1e9
    if grace_s < 0:
        raise Malformed(sentences.STOP_GRACE_INVALID.say())
    return grace_s


# ------------------------------------------------------------------ files


def _inputs(inputs: Iterable[pb.TaskInput]) -> tuple[InputSpec, ...]:
    listed = list(inputs)
    if len(listed) > MAX_INPUTS:
        raise Malformed(sentences.TOO_MANY.say(field="inputs", most=MAX_INPUTS))
    specs = tuple(_input(f"inputs[{number}]", item) for number, item in enumerate(listed))
    _check_overlap(specs)
    return specs


def _input(field: str, item: pb.TaskInput) -> InputSpec:
    _check_path(f"{field}.path", item.path)
    _limit(f"{field}.size_bytes", item.size_bytes, 0)
    if len(item.sha256) != DIGEST_BYTES:
        said = sentences.DIGEST_INVALID.say(field=f"{field}.sha256", length=DIGEST_BYTES)
        raise Malformed(said)
    if len(item.inline) > MAX_INLINE_BYTES:
        said = sentences.INLINE_TOO_LARGE.say(field=f"{field}.inline", most=MAX_INLINE_BYTES)
        raise Malformed(said)
    inline = bool(item.inline) or item.size_bytes == 0
    if inline:
        _check_inline(field, item)
    return InputSpec(
        path=item.path,
        size_bytes=item.size_bytes,
        sha256=item.sha256.hex(),
        unpack=item.unpack,
        inline=inline,
    )


def _check_inline(field: str, item: pb.TaskInput) -> None:
    if len(item.inline) != item.size_bytes:
        said = sentences.INLINE_SIZE_DIFFERS.say(
            field=f"{field}.size_bytes", size=item.size_bytes, inline=len(item.inline)
        )
        raise Malformed(said)
    if hashlib.sha256(item.inline).digest() != item.sha256:
        raise Malformed(sentences.INLINE_DIGEST_DIFFERS.say(field=f"{field}.sha256"))


def _check_path(field: str, path: str) -> None:
    parts = path.split("/")
    if "\0" in path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise Malformed(sentences.PATH_INVALID.say(field=field))
    if len(path.encode()) > MAX_PATH_BYTES or any(len(p.encode()) > MAX_NAME_BYTES for p in parts):
        said = sentences.PATH_TOO_LONG.say(
            field=field, most=MAX_PATH_BYTES, most_name=MAX_NAME_BYTES
        )
        raise Malformed(said)


def _check_overlap(specs: tuple[InputSpec, ...]) -> None:
    """In the order of the paths, what lies below a file comes right after it."""
    above: InputSpec | None = None
    previous: InputSpec | None = None
    for parts, number in sorted((spec.path.split("/"), i) for i, spec in enumerate(specs)):
        spec, field = specs[number], f"inputs[{number}].path"
        if previous is not None and previous.path == spec.path:
            raise Malformed(sentences.PATH_TWICE.say(field=field, path=spec.path))
        if above is not None and above.path.split("/") == parts[: above.path.count("/") + 1]:
            raise Malformed(sentences.PATH_BELOW_FILE.say(field=field, above=above.path))
        previous, above = spec, above if spec.unpack else spec


def _check_count(field: str, items: Sized) -> None:
    if len(items) > MAX_LINES:
        raise Malformed(sentences.TOO_MANY.say(field=field, most=MAX_LINES))


def _requirements(lines: Sequence[str]) -> tuple[str, ...]:
    if sum(map(len, lines)) > requirements.MOST_CHARACTERS:
        raise Malformed(
            sentences.REQUIREMENTS_TOO_LONG.say(most=requirements.MOST_CHARACTERS)
        )
    _check_count("requirements", lines)
    for number, line in enumerate(lines):
        fault = requirements.fault(line)
        if fault is not None:
            field = f"requirements[{number}]"
            raise Malformed(sentences.REQUIREMENT_INVALID.say(field=field, fault=fault))
    return tuple(lines)


def _globs(globs: Sequence[str]) -> tuple[str, ...]:
    _check_count("output_globs", globs)
    for number, glob in enumerate(globs):
        _check_path(f"output_globs[{number}]", glob.rstrip("/"))
    return tuple(globs)
