"""Monitors of GPUs under a real supervisord, on a driver that is faked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from procs.cli.gpus import render
from shared.messages import GpuLoad, GpuSample
from tests.fakes.fake_nvml import FakeNvml
from tests.fakes.supervised import ROOT, Supervised, supervised

START = ROOT / "procs" / "start.sh"
SETS = (("GPU-1",), ("GPU-2",))


@contextmanager
def watched(
    nvml: FakeNvml,
    sets: tuple[tuple[str, ...], ...] = SETS,
    start: str = "",
    programs: tuple[str, ...] = (),
) -> Iterator[Supervised]:
    """A monitor for each set, as `configure` writes them, beside `programs`; `start` in the place
    of start.sh."""

    def add(conf: str) -> str:
        gpus = render(sets, ROOT)
        return conf + (gpus.replace(f"/bin/sh {START} monitor", start) if start else gpus)

    with supervised(
        programs, add, LD_LIBRARY_PATH=nvml.environment["LD_LIBRARY_PATH"],
        HIVEMIND_FAKE_NVML=nvml.environment["HIVEMIND_FAKE_NVML"],
    ) as worker:  # fmt: skip
        yield worker


def load_of(
    worker: Supervised, name: str, where: Callable[[GpuLoad], bool] = lambda _: True
) -> GpuLoad:
    """The set's next load that is as `where` says."""
    return worker.next(GpuLoad, lambda load: load.gpu_set == name and where(load))


def card_of(
    worker: Supervised, name: str, where: Callable[[GpuSample], bool] = lambda _: True
) -> GpuSample:
    """The same of a set of one card, which is told."""
    return load_of(worker, name, lambda load: any(map(where, load.gpus))).gpus[0]


def is_lost(card: GpuSample) -> bool:
    return not card.reachable


def is_well(card: GpuSample) -> bool:
    return card.reachable
