"""`lib/reports/`: the intervals on their way to the master, and the total that they add up to.

One file for each report, so that no broken database loses or doubles one. A file's name says how
far it is: `.new` may still grow, `.sent` never changes, `.told` is the last that was acknowledged
and stays for its total. Storing an interval and counting its reward are one rename. Blocks: call
in a thread.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from procs.master_link import reports
from shared.files import sync_directory, write_atomic
from shared.pb import hivemind_pb2 as pb

NEW, SENT, TOLD = "new", "sent", "told"
NAME = re.compile(r"([0-9]{12})\.(new|sent|told)")

log = logging.getLogger("master_link")


class Entry(NamedTuple):
    """One file."""

    number: int
    state: str
    path: Path
    report: pb.NodeStatusRequest


class Ledger:
    """`total`, `to_unix_ns`: after all that is stored. `pending`: reports not yet acknowledged."""

    def __init__(self, folder: Path, least_total: int = 0) -> None:
        """`least_total`: what is known from elsewhere, should a file here be broken."""
        self._folder = folder
        folder.mkdir(mode=0o750, exist_ok=True)
        entries = self._entries()
        self.total = max([e.report.reward_total for e in entries], default=0)
        self.total = max(self.total, least_total)
        self.to_unix_ns = entries[-1].report.to.ToNanoseconds() if entries else 0
        self.pending = _pending(entries)

    def add(self, interval: pb.NodeStatusRequest, node_id: str) -> int:
        """Store an interval and count its reward; the new total. One that is here already, since
        an earlier try failed half way, counts once.

        A report that was never sent takes the interval in: a long outage costs few files.
        """
        entries = self._entries()
        newest = entries[-1] if entries else None
        if newest is None or newest.report.to.ToNanoseconds() < interval.to.ToNanoseconds():
            newest = self._store(newest, interval, node_id)
        for entry in entries:
            if entry.state == TOLD and entry.number != newest.number:
                entry.path.unlink()
        self.total = max(self.total, newest.report.reward_total)
        self.to_unix_ns = newest.report.to.ToNanoseconds()
        self.pending = _pending(self._entries())
        return self.total

    def _store(
        self, newest: Entry | None, interval: pb.NodeStatusRequest, node_id: str
    ) -> Entry:
        number, report = newest.number + 1 if newest else 1, pb.NodeStatusRequest()
        report.CopyFrom(interval)
        if newest and newest.state == NEW and reports.can_merge(newest.report, interval):
            number, report = newest.number, reports.merged(newest.report, interval)
        report.node_id = node_id
        report.reward_total = interval.reward + max(
            self.total, newest.report.reward_total if newest else 0
        )
        path = self._path(number, NEW)
        write_atomic(path, report.SerializeToString(deterministic=True))
        return Entry(number, NEW, path, report)

    def next(self, node_id: str) -> tuple[int, bytes] | None:
        """The oldest report, marked as sent before it is: from here on it never changes."""
        entry = next((e for e in self._entries() if e.state != TOLD), None)
        if entry is None:
            return None
        path = entry.path
        if entry.state == NEW:
            if entry.report.node_id != node_id:  # it was stored before the node had joined
                entry.report.node_id = node_id
                write_atomic(path, entry.report.SerializeToString(deterministic=True))
            path = path.rename(self._path(entry.number, SENT))
            sync_directory(self._folder)
        return entry.number, path.read_bytes()

    def drop(self, number: int) -> None:
        """The master has it. Not synced: what a crash undoes is sent again, the same."""
        entries = self._entries()
        path = self._path(number, SENT)
        if number == entries[-1].number:
            path.rename(self._path(number, TOLD))
        else:
            path.unlink()
        self.pending = _pending(self._entries())

    def _path(self, number: int, state: str) -> Path:
        return self._folder / f"{number:012d}.{state}"

    def _entries(self) -> list[Entry]:
        """The oldest first; a file that can't be read is set aside."""
        found = []
        for path in sorted(self._folder.iterdir()):
            if match := NAME.fullmatch(path.name):
                report = _read(path)
                if report is None:
                    self._set_aside(path)
                else:
                    found.append(Entry(int(match[1]), match[2], path, report))
        return found

    def _set_aside(self, path: Path) -> None:
        aside = path.rename(path.with_name(f"{path.name}.broken"))
        log.error("a report can't be read: set aside as %s", aside)


def _read(path: Path) -> pb.NodeStatusRequest | None:
    try:
        report = pb.NodeStatusRequest.FromString(path.read_bytes())
    except DecodeError:
        return None
    return report if report.HasField("to") else None  # no byte at all can be decoded, too


def _pending(entries: list[Entry]) -> int:
    return sum(1 for entry in entries if entry.state != TOLD)
