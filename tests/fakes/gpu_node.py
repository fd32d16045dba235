"""A node with GPUs that are not there: monitors that say what a test wants, on the real bus, and an
engine that believes it has NVIDIA's toolkit, since a program of the hook's name is in its PATH."""

import json
import os
import time

import docker

from shared.bus import Bus
from shared.messages import GpuLoad, GpuSample
from tests.fakes.executor_alone import ExecutorAlone
from tests.system.engine.private import PrivateEngine

HOOK = """#!/bin/sh
# what NVIDIA's own reads: the container's state, and the configuration in its bundle
state=$(cat)
bundle=$(printf %s "$state" | sed 's/.*"bundle":"\\([^"]*\\)".*/\\1/')
cp "$bundle/config.json" "{folder}/$$.json"
"""


class HookedEngine(PrivateEngine):
    """Keeps what the hook was told of each container that was started with a card."""

    def start(self, *options: str) -> None:
        programs = self.folder.parent / "hook"
        programs.mkdir(exist_ok=True)
        hook = programs / "nvidia-container-runtime-hook"
        hook.write_text(HOOK.format(folder=programs))
        hook.chmod(0o755)
        before = os.environ["PATH"]
        os.environ["PATH"] = f"{programs}:{before}"
        try:
            super().start(*options)
        finally:
            os.environ["PATH"] = before

    def take_image(self, other: PrivateEngine) -> None:
        """The tests' task image, sooner than it is built."""
        source = docker.APIClient(base_url=other.host, version="1.41")
        target = docker.APIClient(base_url=self.host, version="1.41")
        list(target.load_image(source.get_image(other.task_image)))  # type: ignore[no-untyped-call]
        source.close()
        target.close()

    def visible(self) -> list[str]:
        """NVIDIA_VISIBLE_DEVICES as the hook reads it (the last one counts), for each start."""
        found = []
        for path in (self.folder.parent / "hook").glob("*.json"):
            lines = json.loads(path.read_text())["process"]["env"]
            found.append(dict(line.split("=", 1) for line in lines)["NVIDIA_VISIBLE_DEVICES"])
        return sorted(found)


class GpuNode(ExecutorAlone):
    """An executor, its link, and one monitor for each set of cards in `cards`."""

    def __init__(self, docker_host: str) -> None:
        super().__init__(docker_host)
        self.cards: dict[str, tuple[GpuSample, ...]] = {}
        self.speak = True  # False: they beat, and know nothing yet
        self._monitors: dict[str, Bus] = {}

    def publish(self) -> None:
        super().publish()
        for name, gpus in self.cards.items():
            bus = self._monitors.get(name) or Bus(self.home, f"monitor@{name}")
            self._monitors[name] = bus
            now_s = time.monotonic()
            bus.publish(GpuLoad(at_s=now_s, synced=self.speak, gpu_set=name, gpus=gpus))
            bus.drain()

    def fall_silent(self, name: str) -> None:
        """Its monitor is killed; its socket stays, as sockets do."""
        del self.cards[name]
        self._monitors.pop(name).close()

    def stop(self) -> None:
        """With nothing left that runs."""
        try:
            if self.wanted:
                self.wanted = {key: self.stopped(key) for key in self.wanted}
                self.wait(lambda: not self.containers(), "no container left")
        finally:
            for bus in self._monitors.values():
                bus.close()
            super().stop()


def gpu(uuid: str, memory_gib: int, *, lost: str = "") -> GpuSample:
    return GpuSample(
        index=0, uuid=uuid, name="H", reachable=not lost, reason=lost, util_pct=50.0,
        memory_total_bytes=memory_gib * 2**30,
    )  # fmt: skip


