"""A task's requirement lines: which ones a node installs, and when two lists are the same. Pure.

A line is one requirement as PEP 508 has it. Options of pip are refused: which index, certificate
and proxy are used is the owner's to set, and a path or another scheme would be the host's.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

MOST_CHARACTERS = 100_000  # of all lines: reading them takes its time, some 2 µs each
EXPECTED = "must be a requirement such as numpy>=2 or name @ https://host/name-1.0-py3-none-any.whl"
OPTION = "begins with -: no options of pip; index, certificate and proxy are the node owner's"


def fault(line: str) -> str | None:
    """What is wrong with a line; None: nothing."""
    if line.lstrip().startswith("-"):
        return OPTION
    if not line.isprintable() or "\\" in line or "${" in line:
        return "must be printable, without \\ and ${"  # pip joins lines, and expands variables
    try:
        requirement = Requirement(_without_comment(line))
    except (InvalidRequirement, RecursionError):  # of brackets in brackets
        return EXPECTED
    return None if requirement.url is None else _url_fault(requirement.url)


def _url_fault(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port that is none
        usable = False
    return None if usable else "its address must begin with https://"


def normalised(lines: Iterable[str]) -> tuple[str, ...]:
    """Sorted, each once, in one spelling: what pip is given, and what a layer is known by.
    ValueError for a line that `fault` refuses."""
    return tuple(sorted({_spelled(line) for line in lines}))


def _spelled(line: str) -> str:
    if (wrong := fault(line)) is not None:
        raise ValueError(f"{line!r}: {wrong}")
    requirement = Requirement(_without_comment(line))
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def _without_comment(line: str) -> str:
    return line.split(" #", 1)[0].strip()
