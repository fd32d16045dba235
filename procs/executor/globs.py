"""Which of the output's files are wanted. Pure. Patterns and names are both a stranger's: what one
name costs is bounded by the patterns' length, as no `.*` expression's is."""

import re
from collections.abc import Iterable

Reached = tuple[frozenset[int], ...]  # of each pattern the parts at which the next name may stand


class Globs:
    """`*` within a folder's name, `**` for folders; a folder's name takes all below it. No
    patterns: everything. From the root down: `step` for each name of a path, `takes` at its end."""

    def __init__(self, globs: Iterable[str]) -> None:
        self._patterns = [[_name(part) for part in glob.strip("/").split("/")] for glob in globs]
        self.root: Reached = tuple(_with_folders({0}, pattern) for pattern in self._patterns)

    def step(self, reached: Reached, name: str) -> Reached:
        pairs = zip(self._patterns, reached, strict=True)
        return tuple(_step(pattern, at, name) for pattern, at in pairs)

    def takes(self, reached: Reached) -> bool:
        pairs = zip(self._patterns, reached, strict=True)
        return not self._patterns or any(len(pattern) in at for pattern, at in pairs)


def _name(part: str) -> re.Pattern[str] | None:
    """One name of a pattern; None: any folders. The groups are atomic: each `*` takes as little
    as it can and is never tried again, which for one name is enough."""
    if part == "**":
        return None
    first, *others = (re.escape(p).replace(r"\?", ".") for p in re.split(r"\*+", part))
    if not others:
        return re.compile(first, re.DOTALL)
    middle = "".join(f"(?>.*?{other})" for other in others[:-1])
    return re.compile(f"{first}{middle}.*{others[-1]}", re.DOTALL)


def _step(pattern: list[re.Pattern[str] | None], at: frozenset[int], name: str) -> frozenset[int]:
    if len(pattern) in at:  # a folder above it is named
        return at
    steps = {
        index if part is None else index + 1
        for index, part in ((i, pattern[i]) for i in at)
        if part is None or part.fullmatch(name)
    }
    return _with_folders(steps, pattern)


def _with_folders(at: set[int], pattern: list[re.Pattern[str] | None]) -> frozenset[int]:
    """`**` may stand for none."""
    reached = set(at)
    for index in range(len(pattern)):
        if index in reached and pattern[index] is None:
            reached.add(index + 1)
    return frozenset(reached)
