"""Every fault at every call of NVML's, in a process whose library is the faked one.

    python -m tests.fakes.nvml_faults codes|instances|hangs FOLDER

Prints what became of two cards as JSON. A crash of this process is a fault that was not survived.
"""

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from procs.monitor import gpu_reader
from procs.monitor.gpu_nvml import DriverError, Nvml
from procs.monitor.gpu_reader import Reader, is_uninterruptible
from tests.fakes.fake_nvml import ANY, HANG, HANG_D, ONE, SOURCE, TWO, FakeCard, FakeNvml

FUNCTIONS = re.findall(r"^EXPORT int (\w+)\(", SOURCE.read_text(), re.MULTILINE)
OF_NO_CARD = [
    name for name in FUNCTIONS if not name.startswith("nvmlDevice") or name.endswith("Count_v2")
]
CODES = (*range(1, 31), 999)
INSTANCE = FakeCard("MIG-1", name="NVIDIA H100 MIG 1g.10gb", total_mib=9984)
LONGEST_S = 30.0
STALE_S = 0.05  # of this table: a hang is one sooner

Telling = dict[str, dict[str, object]]  # a sample's fields, by UUID


def two_cards(folder: Path) -> FakeNvml:
    """The first is split, so that MIG's calls are made too."""
    nvml = FakeNvml(folder)
    nvml.cards = [FakeCard(ONE.uuid, is_split=True), TWO]
    nvml.instances = [(ONE.uuid, INSTANCE)]
    nvml.processes = [(ONE.uuid, 11, 5), (TWO.uuid, 12, 5)]
    nvml.say()
    return nvml


def read(session: Nvml) -> Telling:
    """Of both; DriverError is told in the place of a card."""
    try:
        session.take_events()
        samples = [s for uuid in (ONE.uuid, TWO.uuid) for s in session.read(uuid)]
    except DriverError as err:
        return {"driver": {"reason": str(err)}}
    return {sample.uuid: msgspec.to_builtins(sample) for sample in samples}


def opened(session: Nvml) -> Telling:
    try:
        session.open()
    except DriverError as err:
        return {"driver": {"reason": str(err)}}
    return read(session)


def codes(nvml: FakeNvml) -> Iterator[dict[str, object]]:
    """An error of the first card's calls: in an open session, at the opening, and after."""
    session = Nvml()
    yield {"before": opened(session)}
    for function in FUNCTIONS:
        for code in CODES:
            opened(session)
            nvml.break_(function, ANY if function in OF_NO_CARD else ONE.uuid, code)
            within, anew = read(session), opened(session)
            nvml.mend()
            after = opened(session)
            found = {"within": within, "anew": anew, "after": after}
            yield {"function": function, "code": code, **found}


def instances(nvml: FakeNvml) -> Iterator[dict[str, object]]:
    """An error of the calls for an instance of the first card."""
    session = Nvml()
    yield {"before": opened(session)}
    for function in FUNCTIONS:
        for code in CODES:
            opened(session)
            nvml.break_(function, INSTANCE.uuid, code)
            yield {"function": function, "code": code, "within": read(session)}
            nvml.mend()


def until(reader: Reader, is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LONGEST_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"hanging: {reader.hanging()}, seen {reader.seen()}"
        reader.look(0.01)


def is_called(function: str) -> bool:
    """Not by the binding, or only where another is not there."""
    instead = ("nvmlInit_v2", "nvmlShutdown", "nvmlDeviceGetMemoryInfo",
               "nvmlDeviceGetTemperatureV", "nvmlEventSetFree")  # fmt: skip
    return function not in instead


def hangs(nvml: FakeNvml) -> Iterator[dict[str, object]]:
    """A call that does not return, from the beginning on; then it does."""
    gpu_reader.STALE_S = STALE_S  # type: ignore[attr-defined]
    for function in filter(is_called, FUNCTIONS):
        for fault in (HANG, HANG_D):
            nvml.break_(function, ANY, fault)
            reader = Reader((ONE.uuid, TWO.uuid), logging.getLogger())
            until(reader, lambda: bool(reader.hanging()))  # noqa: B023
            states = [is_uninterruptible(hand) for hand in reader.hanging().values()]
            nvml.mend()
            until(reader, lambda: {ONE.uuid, TWO.uuid} <= reader.seen().keys())  # noqa: B023
            until(reader, lambda: not reader.hanging() and not reader.why())  # noqa: B023
            told = {u: msgspec.to_builtins(seen.sample) for u, seen in reader.seen().items()}
            yield {"function": function, "fault": fault, "states": states, "after": told}
    yield {"threads": threading.active_count()}


if __name__ == "__main__":
    table = {"codes": codes, "instances": instances, "hangs": hangs}[sys.argv[1]]
    print(json.dumps(list(table(two_cards(Path(sys.argv[2]))))))
