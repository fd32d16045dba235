"""Reports on their way: none lost, none counted twice, whatever fails between two steps."""

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procs.master_link import ledger as ledger_module
from procs.master_link import reports
from procs.master_link.ledger import Ledger
from shared import rewards
from shared.files import sync_directory, write_atomic
from shared.pb import hivemind_pb2 as pb

SECOND_NS = 10**9


def interval(from_s: int, to_s: int, pct: float = 60.0) -> pb.NodeStatusRequest:
    report = pb.NodeStatusRequest()
    getattr(report, "from").FromSeconds(from_s)
    report.to.FromSeconds(to_s)
    report.average.cpu_percent = report.average.memory_percent = pct
    report.reward = rewards.of_report(report)
    return report


def told(body: bytes) -> pb.NodeStatusRequest:
    return pb.NodeStatusRequest.FromString(body)


def test_a_report_that_was_sent_never_changes_and_unsent_ones_are_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "r")
    assert ledger.next("n") is None
    totals = [ledger.add(interval(n * 30, n * 30 + 30), "") for n in range(2)]
    first = ledger.next("n")
    assert first is not None
    totals += [ledger.add(interval(n * 30, n * 30 + 30), "n") for n in range(2, 4)]
    assert totals == [12, 24, 36, 48]
    assert ledger.next("other") == first
    assert ledger.pending == 2
    ledger.drop(first[0])
    rest = ledger.next("n")
    assert rest is not None
    both = [told(body) for _, body in (first, rest)]
    assert [(t.node_id, t.reward, t.reward_total) for t in both] == [("n", 24, 24), ("n", 24, 48)]
    ledger.drop(rest[0])
    assert (ledger.pending, ledger.next("n")) == (0, None)
    assert Ledger(tmp_path / "r").total == 48
    assert Ledger(tmp_path / "r").to_unix_ns == 120 * SECOND_NS
    ledger.add(interval(120, 150), "n")
    assert [path.name[13:] for path in (tmp_path / "r").iterdir()] == ["new"], "the told one goes"


def test_a_report_takes_in_only_so_many_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MOST_MERGED", 3)
    ledger = Ledger(tmp_path / "r")
    for n in range(7):
        ledger.add(interval(n * 30, n * 30 + 30, pct=n * 10.0), "n")
    sizes = []
    while (found := ledger.next("n")) is not None:
        report = told(found[1])
        assert rewards.of_report(report) == report.reward, "each can be reckoned again"
        sizes.append(len(rewards.bases(report)))
        ledger.drop(found[0])
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("damage", [b"\xff\xff", b""], ids=["garbage", "empty"])
def test_a_broken_report_is_set_aside_and_the_total_known_from_elsewhere_stays(
    tmp_path: Path, damage: bytes
) -> None:
    ledger = Ledger(tmp_path / "r")
    ledger.add(interval(0, 30), "n")
    (file,) = (tmp_path / "r").iterdir()
    file.write_bytes(damage)
    again = Ledger(tmp_path / "r", least_total=12)
    assert (again.total, again.pending) == (12, 0)
    assert again.add(interval(30, 60), "n") == 24
    assert sorted(path.suffix for path in (tmp_path / "r").iterdir()) == [".broken", ".new"]


# ------------------------------------------------------------------ any order of events


class DiskFaultError(OSError):
    """Made by the test."""


class Disk:
    """Fails the n-th step from now: before it is done, or after, as a crash or an EIO would."""

    def __init__(self) -> None:
        self.write, self.sync = write_atomic, sync_directory
        self.steps, self.done = 0, False

    def fail(self, steps: int, done: bool) -> None:
        self.steps, self.done = steps, done

    def _step(self) -> bool:
        self.steps -= 1
        return self.steps == 0

    def write_atomic(self, path: Path, data: bytes) -> None:
        fails = self._step()
        if not fails or self.done:
            self.write(path, data)
        if fails:
            raise DiskFaultError

    def sync_directory(self, path: Path) -> None:
        if self._step():
            raise DiskFaultError
        self.sync(path)


class Story:
    """A node that measures without a pause, and a master that stores what comes to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger, self.now_s, self.earned = folder, Ledger(folder), 1000, 0
        self.master: dict[int, bytes] = {}
        self.unstored: pb.NodeStatusRequest | None = None

    def measure(self, pct: float) -> None:
        """main.py's part: the next interval begins where the last stored one ends, and one that
        can't be stored is tried again before the next is measured."""
        if self.unstored is None:
            begin_s = self.ledger.to_unix_ns // SECOND_NS or self.now_s
            self.now_s += 30
            self.unstored = interval(begin_s, self.now_s, pct)
        self.ledger.add(self.unstored, "n")
        self.unstored = None

    def send(self, acknowledged: bool) -> None:
        found = self.ledger.next("n")
        if found is None:
            return
        number, body = found
        from_ns = getattr(told(body), "from").ToNanoseconds()
        assert self.master.setdefault(from_ns, body) == body, "sent again, and not the same"
        if acknowledged:
            self.ledger.drop(number)

    def restart(self) -> None:
        """What was measured and not stored is gone with the process, or was stored after all."""
        self.unstored = None
        self.ledger = Ledger(self.folder)

    def check(self) -> None:
        while self.ledger.pending:
            self.send(acknowledged=True)
        known = [told(self.master[from_ns]) for from_ns in sorted(self.master)]
        total = 0
        for before, report in zip([None, *known], known, strict=False):
            begin = getattr(report, "from").ToNanoseconds()
            assert before is None or before.to.ToNanoseconds() == begin, "a gap, or an overlap"
            assert rewards.of_report(report) == report.reward
            total += report.reward
            assert report.reward_total == total
        assert self.ledger.total == total


EVENTS = st.one_of(
    st.tuples(st.just("measure"), st.sampled_from([0.0, 30.0, 60.0, 90.0])),
    st.tuples(st.just("send"), st.booleans()),
    st.tuples(st.just("restart"), st.none()),
)
FAULTS = st.one_of(st.none(), st.tuples(st.integers(1, 2), st.booleans()))


@given(st.lists(st.tuples(EVENTS, FAULTS), max_size=40))
@settings(deadline=None, max_examples=300)
def test_no_order_of_faults_loses_or_doubles_an_interval(
    events: list[tuple[tuple[str, object], tuple[int, bool] | None]],
) -> None:
    disk = Disk()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger_module, "write_atomic", disk.write_atomic)
        patched.setattr(ledger_module, "sync_directory", disk.sync_directory)
        story = Story(Path(folder) / "r")
        for (event, what), fault in events:
            disk.fail(*(fault or (0, False)))
            with contextlib.suppress(DiskFaultError):
                getattr(story, event)(*(() if what is None else (what,)))
        disk.fail(0, False)
        story.restart()
        story.check()
