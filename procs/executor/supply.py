"""What attempts wait for: resources, images, requirements, networks. Asks for it, takes what has
come, and moves those on that waited. Belongs to the loop's thread; whatever blocks is elsewhere.

Reads task.want (is there news?), vpn.state, gpu.load.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from procs.executor import core, quota
from procs.executor.attempt import Attempt, Outcome
from procs.executor.core import Event, Step, Wait
from procs.executor.engine import About, Engine
from procs.executor.gpus import UNKNOWN, Cards
from procs.executor.images import Images
from procs.executor.install_box import PipSettings
from procs.executor.installs import Installed, Installs, orders
from procs.executor.jobs import Jobs
from procs.executor.layers import Layers
from procs.executor.networks import Egress, Networks
from procs.executor.pulls import Pulled, Pulls
from procs.executor.sandbox import GVISOR
from shared import service
from shared.messages import Capacity, GpuLoad, TaskWant, VpnState
from shared.taskdir import TASKS, TaskKey

IMAGES, NETWORK = "images", "network"  # the lanes that tidy the ones and make the others

_CPUS = os.cpu_count() or 1
_MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Supply:
    """Of one worker. `apply` moves an attempt; `used_bytes` is what it has on disk."""

    def __init__(
        self,
        context: service.Context,
        engine: Engine,
        keeper: Path,
        attempts: Mapping[TaskKey, Attempt],
        apply: Callable[[Attempt, Event], None],
        used_bytes: Callable[[TaskKey], int],
    ) -> None:
        settings, home = context.settings, context.home
        self._settings, self._bus, self._inbox = settings, context.bus, context.bus.inbox
        self._tasks = home / TASKS
        self._attempts, self._apply, self._used_bytes = attempts, apply, used_bytes
        self._is_offline = settings.sandbox == GVISOR
        self.egress, self.layers = Egress(engine, settings), Layers(home)
        self._images = Images(engine, home, settings.docker_host, settings.image_disk_pct)
        self._pulls = Pulls(engine, self._images)
        self._installs = Installs(
            engine, self.layers, None if self._is_offline else self.egress.installs,
            home, keeper, settings.sandbox, PipSettings.of(settings),
        )  # fmt: skip
        self.cards = Cards(time.monotonic())
        self.trust_level = 0
        self._about: About | None = None

    @property
    def networks(self) -> Networks | None:
        """None: tasks have none here."""
        return None if self._is_offline else self.egress.tasks

    @property
    def sources(self) -> tuple[Pulls, Installs]:
        return self._pulls, self._installs

    def beat(
        self, about: About | None, jobs: Jobs[Outcome | Callable[[], None]], now_s: float
    ) -> None:
        self._about = about
        if about and self.egress.lacks_one(now_s):
            jobs.submit(NETWORK, self.egress.ensure)
        if about and self._images.is_due(now_s) and not jobs.is_busy(IMAGES):
            jobs.submit(IMAGES, self._images.tidying(about.data_root, self._wanted_images(), now_s))
        monitors = self._bus.sources(GpuLoad)
        self.cards.take(monitors, self._inbox.all_fresh(GpuLoad, now_s), now_s)

    def take(self, ready: set[int], now_s: float) -> None:
        """What has come."""
        if self._pulls.fileno() in ready:
            for pulled in self._pulls.results(now_s):
                self._pulled(pulled)
        if self._installs.fileno() in ready:
            for installed in self._installs.results(now_s):
                self._installed(installed)

    def decide(self, about: About | None, now_s: float) -> None:
        """Who may go on, and what is to be asked for."""
        self._about = about
        self._begin_waiting(now_s)
        self._want_images(now_s)
        self._want_layers(now_s)
        self._want_networks(now_s)

    def adopt(self, attempt: Attempt) -> None:
        """It has its part since an earlier life."""
        grant = attempt.grant
        if grant is not None and grant.network:
            self.egress.hold(attempt.key, grant.network)
        if grant is not None and grant.layer:
            self.layers.adopt(grant.layer, attempt.key)
        if grant is None and attempt.step in core.ACTIVE:
            gpus = (UNKNOWN,) if attempt.spec.gpus else ()
            attempt.grant = replace(quota.grant(attempt.spec, self.capacity()), gpus=gpus)

    def use(self, image: str) -> None:
        self._images.use(image)

    def _begin_waiting(self, now_s: float) -> None:
        """Give resources to waiting attempts, once it is known that they are still wanted."""
        waiting = [
            a for a in self._attempts.values()
            if a.step is Step.WAITING and a.retry_at_s <= now_s and a.absent_since_s is None
        ]  # fmt: skip
        if not waiting or not self._about or not self._inbox.fresh(TaskWant, now_s):
            return
        preparing = sum(a.in_preparation for a in self._attempts.values())
        most = self.capacity()
        grants = [a.grant for a in self._attempts.values() if a.grant and a.step in core.ACTIVE]
        for attempt in waiting:
            wish = quota.grant(attempt.spec, most)
            attempt.detail = quota.shortage(attempt.spec, wish, grants, most)
        cards = self.cards.grantable()
        specs = [a.spec for a in waiting]
        for spec, granted in quota.choose(specs, grants, preparing, most, cards):
            attempt = self._attempts[spec.key]
            attempt.grant, attempt.detail = granted, ""
            self._apply(attempt, Event.GRANTED)

    def _want_images(self, now_s: float) -> None:
        waiting = [a for a in self._attempts.values() if a.waits(Wait.IMAGE)]
        images = {a.spec.image for a in waiting} if self._about else set()
        self._pulls.want(images, now_s)
        for attempt in waiting:
            attempt.detail = self._pulls.progress(attempt.spec.image) or attempt.detail

    def _pulled(self, pulled: Pulled) -> None:
        self._images.look_soon()
        for attempt in list(self._attempts.values()):
            if not attempt.waits(Wait.IMAGE) or attempt.spec.image != pulled.image:
                continue
            attempt.waits_for, attempt.detail = None, ""
            if pulled.refused:
                attempt.failure = pulled.refused
                self._apply(attempt, Event.PREPARE_FAILED)
            else:
                attempt.pulls, attempt.pull_s = attempt.pulls + 1, attempt.pull_s + pulled.took_s
                self._apply(attempt, Event.ARRIVED)

    def _want_layers(self, now_s: float) -> None:
        waiting = [a for a in self._attempts.values() if a.waits(Wait.LAYER)]
        is_there = self._about is not None
        self._installs.want(orders(waiting), now_s, engine_is_there=is_there)
        for attempt in waiting:
            layer = attempt.grant.layer if attempt.grant else ""
            attempt.detail = self._installs.progress(layer) or attempt.detail

    def _installed(self, installed: Installed) -> None:
        for attempt in list(self._attempts.values()):
            grant = attempt.grant
            if not attempt.waits(Wait.LAYER) or not grant or grant.layer != installed.layer:
                continue
            if installed.away or not installed.fails(grant):
                continue  # asked for again: once the engine is there, or with more room
            attempt.waits_for, attempt.detail = None, ""
            if installed.refused:
                attempt.failure = installed.refused
                self._apply(attempt, Event.PREPARE_FAILED)
            else:
                self._apply(attempt, Event.ARRIVED)

    def _want_networks(self, now_s: float) -> None:
        self.egress.hear(self._inbox.fresh(VpnState, now_s))
        for attempt in self._attempts.values():
            if attempt.waits(Wait.NETWORK) and self.egress.may_go(attempt.key, now_s):
                attempt.waits_for, attempt.detail = None, ""
                self._apply(attempt, Event.ARRIVED)

    def _wanted_images(self) -> set[str]:
        ahead = (Step.WAITING, *core.ACTIVE)
        wanted = {a.spec.image for a in self._attempts.values() if a.step in ahead}
        return wanted | {self._settings.task_image}

    def capacity(self) -> Capacity:
        disk = os.statvfs(self._tasks)
        machine = quota.Machine(
            _CPUS, _MEMORY_BYTES, disk.f_bavail * disk.f_frsize,
            sum(self._used_bytes(a.key) for a in self._attempts.values()),
            self.cards.healthy(), self.cards.known, self.cards.lost_count(),
        )  # fmt: skip
        settings = self._settings
        reserved = quota.Reserved(settings.reserved_cpus, settings.reserved_memory_bytes)
        return quota.capacity(machine, reserved, self.trust_level, settings.max_held_tasks)
