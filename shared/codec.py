"""Bytes <-> messages: msgpack carries the bytes, msgspec checks the types."""

import msgpack
import msgspec

from shared.messages import AnyMessage, Message


class CodecError(ValueError):
    """The bytes on the wire are not one of our messages."""


def encode(message: Message) -> bytes:
    """Text that is not Unicode, such as a file name of a task's making, gets `?` in its place."""
    return bytes(msgpack.packb(msgspec.to_builtins(message), unicode_errors="replace"))


def decode(raw: bytes) -> AnyMessage:
    """The message in `raw`; CodecError if there is none."""
    try:
        message: AnyMessage = msgspec.convert(msgpack.unpackb(raw), type=AnyMessage)
    except (ValueError, msgpack.UnpackException) as err:  # a ValidationError is a ValueError
        raise CodecError(f"{len(raw)} bytes are not a message: {err}") from err
    return message
