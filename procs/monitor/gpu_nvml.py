"""NVML, through NVIDIA's own binding: all of pynvml in the program. Its errors end here.

Any call may hang, so none is made in the loop's thread; a session may be read by several threads,
but is opened and closed by one while no other is in a call. Judges nothing that is not in
gpu_core.py.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NewType, TypeVar, cast

import pynvml

from procs.monitor.gpu_core import Blame, blame, lost, reason, throttle_reasons
from shared.messages import GpuProcess, GpuSample

SLOW_EVERY = 5  # readings: ECC errors, processes and MIG cost more than they change
MOST_PROCESSES = 64  # told of one card: messages stay small
MOST_EVENTS = 16  # taken in one reading
LIBRARY = "libnvidia-ml"

T = TypeVar("T")
Handle = NewType("Handle", object)  # what NVML calls a device
Ways = tuple[Callable[[Handle], Any], ...]  # to one figure, the first that the driver knows


class DriverError(Exception):
    """Nothing can be read of any card; the text says why. `code` is NVML's."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(reason(code, said))
        self.code = code


class CardError(Exception):
    """This card can't be used; the text says why."""


def _raise(err: Exception, is_needed: bool) -> None:
    """Return only where the error says no more than that there is no such figure."""
    code = err.value if isinstance(err, pynvml.NVMLError) else pynvml.NVML_ERROR_UNKNOWN
    fault = blame(code, is_needed)
    if fault is Blame.DRIVER:
        raise DriverError(code, str(err)) from err
    if fault is Blame.CARD:
        raise CardError(reason(code, str(err))) from err


NVML_ERRORS = (pynvml.NVMLError, UnicodeDecodeError)  # a name that is none


def _ask(
    handle: Handle, ways: Iterable[Callable[[Handle], T]], is_needed: bool = False
) -> T | None:
    """None: the card tells no such."""
    for call in ways:
        try:
            return call(handle)
        except NVML_ERRORS as err:
            _raise(err, is_needed)
    return None


def _memory_2(handle: Handle) -> tuple[int, int]:
    """Used without what the driver keeps for itself, and in all."""
    found = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return int(found.used), int(found.total)


def _memory(handle: Handle) -> tuple[int, int]:
    """In its place, with drivers before 510."""
    found = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return int(found.used), int(found.total)


def _temperature(handle: Handle) -> float:
    return float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


def _temperature_v(handle: Handle) -> float:
    """In the place of the other, which NVIDIA will take out."""
    return float(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))


def _clock(kind: int) -> Callable[[Handle], int]:
    return lambda handle: int(pynvml.nvmlDeviceGetClockInfo(handle, kind))


def _ecc(kind: int) -> Callable[[Handle], int]:
    return lambda handle: int(
        pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC)
    )


def _throttles(handle: Handle) -> tuple[str, ...]:
    return throttle_reasons(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _processes(handle: Handle) -> tuple[GpuProcess, ...]:
    found = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)[:MOST_PROCESSES]
    return tuple(GpuProcess(pid=p.pid, memory_bytes=p.usedGpuMemory) for p in found)


FAST: dict[str, Ways] = {  # by the field of GpuSample
    "util_pct": (lambda handle: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),),
    "temperature_c": (_temperature, _temperature_v),
    "power_w": (lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000.0,),
    "clock_sm_mhz": (_clock(pynvml.NVML_CLOCK_SM),),
    "clock_memory_mhz": (_clock(pynvml.NVML_CLOCK_MEM),),
    "throttle_reasons": (_throttles,),
}
SLOW: dict[str, Ways] = {
    "ecc_corrected": (_ecc(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),),
    "ecc_uncorrected": (_ecc(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),),
    "processes": (_processes,),
}


def _figures(handle: Handle, fields: dict[str, Ways]) -> dict[str, Any]:
    return {name: _ask(handle, ways) for name, ways in fields.items()}


def _address(handle: Handle) -> int | None:
    """Two handles of one card point to the same."""
    return ctypes.cast(cast(Any, handle), ctypes.c_void_p).value


class Device:
    """A card of an open session, or a MIG instance of one."""

    def __init__(self, index: int, handle: Handle, mig_of: str = "") -> None:
        self.index, self.handle, self.mig_of = index, handle, mig_of
        self.uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        self.name = _ask(handle, (lambda handle: str(pynvml.nvmlDeviceGetName(handle)),)) or ""
        self.instances: tuple[Device, ...] = ()
        self._is_split = False
        self._slow: dict[str, Any] = {}
        self._reads = 0

    def read(self, driver_version: str, xid: int | None) -> Iterator[GpuSample]:
        """Of itself, then of its instances. CardError, DriverError."""
        memory = _ask(self.handle, (_memory_2, _memory), is_needed=not self.mig_of)
        figures = _figures(self.handle, FAST)
        if self._reads % SLOW_EVERY == 0:
            self._slow = _figures(self.handle, SLOW)
            self._look_for_instances()
        self._reads += 1
        yield GpuSample(
            index=self.index, uuid=self.uuid, name=self.name, driver_version=driver_version,
            memory_used_bytes=memory[0] if memory else None,
            memory_total_bytes=memory[1] if memory else 0,
            xid=xid, is_split=self._is_split, mig_of=self.mig_of, **figures, **self._slow,
        )  # fmt: skip
        for instance in self.instances:
            try:
                yield from instance.read(driver_version, None)
            except CardError as err:
                yield instance.as_lost(str(err), driver_version, None)

    def as_lost(self, why: str, driver_version: str, xid: int | None) -> GpuSample:
        known = GpuSample(
            index=self.index, uuid=self.uuid, name=self.name, driver_version=driver_version,
            xid=xid, is_split=self._is_split, mig_of=self.mig_of,
        )  # fmt: skip
        return lost(self.uuid, why, known)

    def _look_for_instances(self) -> None:
        """They come and go while the driver runs."""
        if self.mig_of:
            return
        mode = _ask(self.handle, (pynvml.nvmlDeviceGetMigMode,)) or (0, 0)
        most = 0
        self._is_split = mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE
        if self._is_split:
            most = _ask(self.handle, (pynvml.nvmlDeviceGetMaxMigDeviceCount,)) or 0
        found = [self._instance(number) for number in range(most)]
        self.instances = tuple(instance for instance in found if instance)

    def _instance(self, number: int) -> "Device | None":
        handle = _ask(
            self.handle, (lambda h: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(h, number),)
        )
        if handle is None:
            return None
        return _ask(handle, (lambda h: Device(self.index, h, self.uuid),))


class Nvml:
    """The driver as one session sees it. Cards that come later are seen by the next."""

    def __init__(self) -> None:
        self.is_open = False
        self.cards: dict[str, Device] = {}
        self._version = ""
        self._events: Any = None
        self._xids: dict[str, int] = {}

    def open(self) -> None:
        """DriverError: there is no driver that works."""
        before = self.cards.keys()
        self.close()
        try:
            pynvml.nvmlInit()
            self.is_open = True
            self._version = str(pynvml.nvmlSystemGetDriverVersion())
            count = pynvml.nvmlDeviceGetCount()
        except NVML_ERRORS as err:
            raise DriverError(getattr(err, "value", pynvml.NVML_ERROR_UNKNOWN), str(err)) from err
        found = [self._device(index) for index in range(count)]
        self.cards = {device.uuid: device for device in found if device}
        for uuid in self.cards.keys() - before:  # it was away: whatever it had is past
            self._xids.pop(uuid, None)
        self._listen()

    def close(self) -> None:
        if self.is_open:
            self.is_open, self.cards, self._events = False, {}, None
            with contextlib.suppress(pynvml.NVMLError):  # then there is nothing to shut down
                pynvml.nvmlShutdown()

    def _device(self, index: int) -> Device | None:
        """None: it is lost, and nobody can say which it was."""
        try:
            return Device(index, pynvml.nvmlDeviceGetHandleByIndex(index))
        except (*NVML_ERRORS, CardError):
            return None

    def read(self, uuid: str) -> list[GpuSample]:
        """A card's reading, then those of its instances. DriverError."""
        device = self.cards.get(uuid)
        if device is None:
            return [lost(uuid, f"the driver has {len(self.cards)} cards, not this one")]
        try:
            return list(device.read(self._version, self._xids.get(uuid)))
        except CardError as err:
            return [device.as_lost(str(err), self._version, self._xids.get(uuid))]

    # -------------------------------------------------------------- XID errors

    def _listen(self) -> None:
        try:
            self._events = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError:
            return
        for device in self.cards.values():
            with contextlib.suppress(pynvml.NVMLError):  # its other calls will tell what it has
                pynvml.nvmlDeviceRegisterEvents(
                    device.handle, pynvml.nvmlEventTypeXidCriticalError, self._events
                )

    def take_events(self) -> None:
        """Note the errors that the driver told of since; waits for none."""
        by_address = {_address(device.handle): uuid for uuid, device in self.cards.items()}
        for _ in range(MOST_EVENTS):
            if self._events is None:
                return
            try:
                event = pynvml.nvmlEventSetWait(self._events, 0)
            except pynvml.NVMLError:
                return  # none, or the cards' own calls will tell why
            uuid = by_address.get(_address(event.device))
            if uuid and event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                self._xids[uuid] = int(event.eventData)


def library_was_replaced() -> bool:
    """By an update of the driver, since it was loaded here: only a new process has the new one."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return any(LIBRARY in line and line.endswith(" (deleted)") for line in maps)
