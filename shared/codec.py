"""Bytes <-> messages: msgpack carries the bytes, msgspec checks the types."""

import msgpack
import msgspec

from shared.messages import MESSAGES, Message


class CodecError(ValueError):
    """The bytes on the wire are not one of our messages."""


def encode(message: Message) -> bytes:
    """Text that is not Unicode, such as a file name of a task's making, gets `?` in its place."""
    return bytes(msgpack.packb(msgspec.to_builtins(message), unicode_errors="replace"))


def decode(raw: bytes) -> Message:
    """The message in `raw`; CodecError if there is none."""
    try:
        content = msgpack.unpackb(raw)
        # by its kind, not as AnyMessage: msgspec would go through the whole union each time
        return msgspec.convert(content, type=MESSAGES[content["kind"]])
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as err:
        raise CodecError(f"{len(raw)} bytes are not a message: {err}") from err
