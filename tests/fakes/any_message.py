"""Hypothesis strategies for the contract's messages, made from their descriptors: whatever the wire
can carry, and assignments that are nearly right."""

import hashlib
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from shared.pb import hivemind_pb2 as pb

DEEPEST = 3
NASTY = (
    "", ".", "..", "/", "a/../b", "/etc/passwd", "a\0b", "\n", "\x1b[2J", "é" * 300, "a" * 5000,
    "%s{0}", "'; DROP TABLE attempts; --", "\u202e", "--privileged",
)  # fmt: skip
RANGES = {
    Field.TYPE_INT32: (-(2**31), 2**31 - 1),
    Field.TYPE_INT64: (-(2**63), 2**63 - 1),
    Field.TYPE_UINT32: (0, 2**32 - 1),
    Field.TYPE_UINT64: (0, 2**64 - 1),
}


def any_message(kind: type[Message], depth: int = 0) -> st.SearchStrategy[Any]:
    """Each field there or not, with anything in it that its type allows."""
    fields = kind.DESCRIPTOR.fields
    there = st.fixed_dictionaries({}, optional={f.name: any_value(f, depth) for f in fields})
    return there.map(lambda values: filled(kind(), values))


def filled(message: Any, values: dict[str, Any]) -> Any:
    """Of a oneof the last stays."""
    for name, value in values.items():
        there = getattr(message, name)
        if isinstance(value, Message):
            there.CopyFrom(value)
        elif isinstance(value, dict):
            there.clear()
            there.update(value)
        elif isinstance(value, list):
            del there[:]
            there.extend(value)
        else:
            setattr(message, name, value)
    return message


def any_value(field: Any, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        key, value = (_one(entry[name], depth + 1) for name in ("key", "value"))
        return st.dictionaries(key, value, max_size=3)
    one = _one(field, depth)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _one(field: Any, depth: int) -> st.SearchStrategy[Any]:
    if field.type == Field.TYPE_MESSAGE:
        kind = GetMessageClass(field.message_type)
        return st.just(kind()) if depth >= DEEPEST else any_message(kind, depth + 1)
    if field.type == Field.TYPE_ENUM:
        return st.sampled_from([*field.enum_type.values_by_number, 99, -1])
    if field.type in RANGES:
        low, high = RANGES[field.type]
        return st.one_of(st.sampled_from([low, high, 0, 1]), st.integers(low, high))
    return {
        Field.TYPE_BOOL: st.booleans(),
        Field.TYPE_DOUBLE: st.floats(),
        Field.TYPE_BYTES: st.binary(max_size=40),
        Field.TYPE_STRING: st.one_of(st.sampled_from(NASTY), st.text(max_size=20)),
    }[field.type]


# ------------------------------------------------------------------ what is nearly right

TASK_IDS = st.integers(0, 60).map("t{}".format)
ATTEMPTS = st.integers(1, 3)
CONTENT = b"content"
GOOD = {
    "image": "image:1",
    "command": ["run", "it"],
    "environment": {"A": "b"},
    "secrets": {"KEY": "hush"},
    "resources": pb.Resources(cpus=0.5, memory_bytes=2**20, processes=10),
    "priority": 3,
    "inputs": [
        pb.TaskInput(
            path="data/in",
            size_bytes=len(CONTENT),
            sha256=hashlib.sha256(CONTENT).digest(),
            inline=CONTENT,
        )
    ],
    "requirements": ["numpy>=2"],
    "output_globs": ["*.csv"],
    "labels": {"who": "me"},
}


@st.composite
def near_assignment(draw: st.DrawFn) -> pb.TaskAssignmentRequest:
    """One that could be taken, but for one or two of its fields, if for any."""
    request = pb.TaskAssignmentRequest(task_id=draw(TASK_IDS), attempt=draw(ATTEMPTS))
    names = draw(st.sets(st.sampled_from(sorted(GOOD)), max_size=4))
    filled(request, {name: GOOD[name] for name in names})
    by_name = pb.TaskAssignmentRequest.DESCRIPTOR.fields_by_name
    for name in draw(st.lists(st.sampled_from(sorted(by_name)), max_size=2)):
        filled(request, {name: draw(any_value(by_name[name], 0))})
    return request


@st.composite
def broken_bytes(draw: st.DrawFn) -> bytes:
    """A message with bytes changed, cut off or put in between: mostly none any more."""
    raw = bytearray(draw(near_assignment()).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=4))
    return bytes(raw)


CANCELS = st.one_of(
    any_message(pb.TaskCancelRequest),
    st.builds(pb.TaskCancelRequest, task_id=TASK_IDS, attempt=ATTEMPTS, reason=st.text(max_size=9)),
)
ASSIGNMENTS = st.one_of(near_assignment(), any_message(pb.TaskAssignmentRequest))
