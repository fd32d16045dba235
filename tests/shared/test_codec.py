"""The wire is plain msgpack; old and new processes can talk; nothing but CodecError comes out."""

import random

import msgpack
import msgspec
import pytest

from shared import codec
from shared.messages import MESSAGES, HeldTask, Message, PhaseAt, TaskPhase, TaskState, TaskUse

STATE = TaskState(
    at_s=12.5,
    tasks=(
        HeldTask(
            task_id="a-1",
            attempt=2,
            phase=TaskPhase.RUNNING,
            directory="a-1.2",
            phases=(PhaseAt(phase=TaskPhase.ACCEPTED, at_unix_s=1e9),),
            use=TaskUse(cpu_pct=50.0, memory_bytes=2**40, memory_limit_bytes=2**41),
            command=("sh", "-c", "echo ☃"),
        ),
    ),
)


@pytest.mark.parametrize("message", [STATE, *(kind(at_s=3.0) for kind in MESSAGES.values())])
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert codec.decode(codec.encode(message)) == message


def test_the_wire_is_plain_msgpack() -> None:
    raw = codec.encode(STATE)
    assert msgspec.msgpack.decode(raw, type=TaskState) == STATE
    assert msgpack.unpackb(raw)["kind"] == "task.state"
    assert codec.decode(msgspec.msgpack.encode(STATE)) == STATE


def test_fields_of_a_newer_peer_are_ignored() -> None:
    fields = msgpack.unpackb(codec.encode(STATE))
    fields["invented"] = {"later": [1, 2]}
    fields["tasks"][0]["also_invented"] = 7
    assert codec.decode(msgpack.packb(fields)) == STATE


def test_fields_that_an_older_peer_lacks_are_default() -> None:
    assert codec.decode(msgpack.packb({"kind": "task.state", "at_s": 1})) == TaskState(at_s=1.0)


def test_text_that_is_not_unicode_does_not_end_the_publisher() -> None:
    """A file name of a task's making can stand in a detail; os.fsdecode gives surrogates."""
    held = msgspec.structs.replace(STATE.tasks[0], detail="can't pack \udcff")
    decoded = codec.decode(codec.encode(TaskState(at_s=1.0, tasks=(held,))))
    assert isinstance(decoded, TaskState)
    assert decoded.tasks[0].detail == "can't pack ?"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(codec.encode(STATE)[:-1], id="cut short"),
        pytest.param(codec.encode(STATE) + b"\x00", id="a byte too many"),
        pytest.param(msgpack.packb([1, 2]), id="no map"),
        pytest.param(msgpack.packb({"at_s": 1.0}), id="no kind"),
        pytest.param(msgpack.packb({"kind": "task.wish", "at_s": 1.0}), id="unknown kind"),
        pytest.param(msgpack.packb({"kind": "task.want"}), id="no time"),
        pytest.param(msgpack.packb({"kind": "task.want", "at_s": "now"}), id="wrong type"),
        pytest.param(msgpack.packb({"kind": "task.want", "at_s": 1, "tasks": [5]}), id="nested"),
        pytest.param(b"\x81\xa1\xff\x01", id="a key that is not UTF-8"),
        pytest.param(b"\x91" * 100_000, id="nested without end"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="promises four billion entries"),
        pytest.param(b"\x81\x91\x01\x01", id="a key that can't be hashed"),
        pytest.param(b"\xd7\xff" + b"\xff" * 8, id="a time that is none"),
    ],
)
def test_what_is_no_message_is_a_codec_error(raw: bytes) -> None:
    with pytest.raises(codec.CodecError, match=f"^{len(raw)} bytes are not a message"):
        codec.decode(raw)


def test_a_damaged_message_is_a_message_or_a_codec_error() -> None:
    good, damage = codec.encode(STATE), random.Random(5)
    refused = 0
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(damage.randint(1, 4)):
            raw[damage.randrange(len(raw))] = damage.randrange(256)
        try:
            codec.decode(bytes(raw))
        except codec.CodecError:
            refused += 1
    assert refused > 500
