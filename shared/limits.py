"""How large a command and its environment may be. Pure; admission and the claim use the same.

The kernel refuses a string of 128 KiB and, with the usual stack, 2 MiB of them in all; what it
would refuse at the start of a task is refused here by name instead.
"""

from collections.abc import Iterator, Mapping, Sequence

MAX_STRING_BYTES = 128 * 1024 - 1  # an argument, or NAME=value; the kernel counts its NUL too
MAX_START_BYTES = 2_000_000  # all of them, each with its NUL and its pointer
POINTER_BYTES = 8


def start_fault(argv: Sequence[str | bytes], environment: Mapping[str, str]) -> str | None:
    """What is wrong with it, naming the field, never a variable's value; None: nothing."""
    if not argv:
        return "command: empty, and the image has none"
    total = 0
    for field, string in _strings(argv, environment):
        fault = _fault(string)
        if fault is not None:
            return f"{field}: {fault}"
        total += len(encoded(string)) + 1 + POINTER_BYTES
        if total > MAX_START_BYTES:
            return f"command and environment: over {MAX_START_BYTES} bytes in all"
    return next(filter(None, map(_name_fault, environment)), None)


def encoded(string: str | bytes) -> bytes:
    return string if isinstance(string, bytes) else string.encode("utf-8", "surrogateescape")


def _strings(
    argv: Sequence[str | bytes], environment: Mapping[str, str]
) -> Iterator[tuple[str, str | bytes]]:
    for index, argument in enumerate(argv):
        yield f"command[{index}]", argument
    for name, value in environment.items():
        yield f"environment[{name!r}]", f"{name}={value}"


def _fault(string: str | bytes) -> str | None:
    try:
        raw = encoded(string)
    except UnicodeEncodeError:
        return "no valid text"
    if b"\0" in raw:
        return "holds a NUL byte"
    if len(raw) > MAX_STRING_BYTES:
        return f"{len(raw)} bytes, {MAX_STRING_BYTES} are possible"
    return None


def _name_fault(name: str) -> str | None:
    return None if name and "=" not in name else f"environment[{name!r}]: no name of a variable"
