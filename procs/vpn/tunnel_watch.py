"""The tunnel as the vpn process's loop sees it: what the others say, when a round is due, what is
said. Never blocks: rounds (vpn_service.py) and questions to the master run in threads.
"""

import logging
import select
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from procs.vpn import core, offer, wg
from procs.vpn.conf import show_endpoint
from procs.vpn.core import Offer, Pace, Tale, Watch, Wish
from procs.vpn.errand import Errand
from procs.vpn.nft import LINKS_CHANGED, NETLINK_ROUTE, Bell, NftError
from procs.vpn.vpn_service import Held, Order, Rounds
from procs.vpn.wg import Look
from shared.messages import VpnState, VpnWant
from shared.settings import Settings

log = logging.getLogger("vpn")

MOST_RETRY_S, MOST_NOTES = 60.0, 3
END_S = 5.0  # the round that is under way may take at an orderly end
PACE = Pace()


class TunnelWatch:
    """Every attribute belongs to the loop's thread."""

    def __init__(self, settings: Settings, pace: Pace = PACE) -> None:
        self._settings, self._pace = settings, pace
        self._rounds = Rounds(settings)
        self._turning: Errand[Held] = Errand("tunnel")
        self._asking: Errand[Offer] = Errand("ask")
        self._bell = _bell(self._rounds.own.name)
        self._held = Held()
        self._want: VpnWant | None = None
        self._node_id, self._key_after_unix_s = "", 0.0
        self._offer: Offer | None = None
        self._offer_is_newer = False  # than the assignment: asked for in silence
        self._asked_s = float("-inf")
        self._key_since_s = float("-inf")
        self._watch = Watch(since_s=time.monotonic())
        self._due_s, self._failures = 0.0, 0
        self._check, self._anew = True, False
        self.has_turned = False

    def hear(self, want: VpnWant | None, node_id: str, key_after_unix_s: float) -> None:
        """The newest words of the others; None and empty: no news."""
        if want is not None:
            changed = self._want is None or want.tunnel != self._want.tunnel
            if changed or want.public_key != (self._want and self._want.public_key):
                self._due_s = 0.0
            if changed:
                self._offer_is_newer = False
                self._offer = self._offer if want.tunnel is not None else None
            self._want = want
        self._node_id = node_id or self._node_id
        if key_after_unix_s > self._key_after_unix_s:
            self._key_after_unix_s, self._due_s = key_after_unix_s, 0.0

    # -------------------------------------------------------------- the loop

    def descriptors(self) -> Iterable[int]:
        sources = (self._turning, self._asking, self._bell)
        return [source.fileno() for source in sources if source is not None]

    def beat(self, now_s: float) -> None:
        if self._settings.vpn == core.OFF:
            if not self.has_turned and self._turning.began_s is None:
                self._turning.start(partial(self._rounds.off, self._held), now_s)
            return
        if self._held.setup is not None and core.silence_due(self._watch, now_s, self._pace):
            self._note_silence(now_s)
        wish = self._wish(now_s)
        if wish.ask or self._stale_none(wish, now_s):
            self._ask(now_s)
        self._turn(wish, now_s)

    def _note_silence(self, now_s: float) -> None:
        if self._watch.told_silent_s < (self._watch.heard_s or self._watch.since_s):
            log.info("nothing is heard of the tunnel's other end: looking for it again")
        self._watch = replace(self._watch, told_silent_s=now_s)
        self._anew, self._due_s = True, 0.0
        if self._held.file.conf is not None and self._held.file.conf.is_ours:
            self._ask(now_s)

    def _stale_none(self, wish: Wish, now_s: float) -> bool:
        return wish.none and now_s - self._asked_s >= self._pace.ask_again_s

    def _wish(self, now_s: float) -> Wish:
        waited_s = now_s - self._key_since_s
        public_key = self._held.public_key
        wish = core.wish(self._want, self._offer, self._node_id, public_key, waited_s)
        if not self._offer_is_newer or self._offer is None:
            return wish
        return replace(wish, tunnel=core.moved(wish.tunnel, self._offer.tunnel))

    def _ask(self, now_s: float) -> None:
        """The master, over HTTPS."""
        due = now_s - self._asked_s >= self._pace.ask_s and self._asking.began_s is None
        if due and self._settings.master_url:
            self._asked_s = now_s
            authority = self._settings.home / "lib" / "master-ca.crt"
            self._asking.start(partial(offer.ask, self._settings.master_url, authority), now_s)

    def _turn(self, wish: Wish, now_s: float) -> None:
        """One that is under way may have missed what came since: again after it."""
        if now_s < self._due_s or self._turning.began_s is not None:
            return
        probe = core.probe_due(self._watch, now_s, self._pace)
        order = Order(
            wish,
            self._want.public_key if self._want else "",
            self._key_after_unix_s,
            check=self._check,
            anew=self._anew,
            probe=probe,
            proven=self._is_proven(now_s),
        )
        if probe:
            self._watch = replace(self._watch, probed_s=now_s)
        self._check = self._anew = False
        self._due_s = now_s + self._pace.look_s
        self._turning.start(partial(self._rounds.turn, order, self._held), now_s)

    def wake(self, ready: set[int], now_s: float) -> bool:
        """Did it learn something that is to be said?"""
        news = False
        if self._bell is not None and self._bell.fileno() in ready and self._bell.rang():
            self._check, self._due_s = True, 0.0
        answer = self._asking.result() if self._asking.fileno() in ready else None
        if answer is not None:
            self._heed(answer)
        held = self._turning.result() if self._turning.fileno() in ready else None
        if held is not None:
            news = self._learn(held, now_s)
        if self._settings.vpn != core.OFF and self._due_s == 0.0:
            self._turn(self._wish(now_s), now_s)
        return news

    def _heed(self, answer: Offer) -> None:
        """No answer changes nothing that is known."""
        if answer.problem and self._offer is not None and not self._offer.problem:
            return
        if answer.problem and (self._offer is None or self._offer.problem != answer.problem):
            log.warning("%s", answer.problem)
        silent = self._watch.told_silent_s > (self._watch.heard_s or 0.0)
        self._offer_is_newer = silent and not answer.problem
        self._offer, self._due_s = answer, 0.0

    def _learn(self, held: Held, now_s: float) -> bool:
        before, self._held = self._held, held
        was = self.state(now_s)
        self.has_turned = True
        if held.public_key != before.public_key:
            self._key_since_s = now_s
        if held.setup != before.setup:
            same_key = _private_key(held) == _private_key(before) or before.look is None
            floor = 0.0 if same_key or before.look is None else before.look.handshake_unix_s
            self._watch = Watch(now_s, floor, probed_s=now_s)
        if held.look is not None:
            look = held.look
            self._watch = core.seen(
                self._watch, look.handshake_unix_s, look.received_bytes, now_s, time.time()
            )
        self._failures = self._failures + 1 if held.trouble else 0
        self._due_s = min(self._due_s, now_s + self._next_s(now_s)) if self._due_s else 0.0
        if held.uses_coming and not before.uses_coming and self._is_proven(now_s):
            self._due_s = 0.0  # the new key is stored as the one and only
        return self.state(now_s) != was

    def _next_s(self, now_s: float) -> float:
        if self._held.trouble:
            return min(MOST_RETRY_S, 2.0 ** min(self._failures - 1, 10))
        fresh = now_s - self._watch.since_s < self._pace.silent_s
        unproven = self._held.setup is not None and not self._is_proven(now_s)
        return 1.0 if unproven and fresh else self._pace.look_s

    def _is_proven(self, now_s: float) -> bool:
        has_look = self._held.setup is not None and self._held.look is not None
        return has_look and core.is_proven(self._watch, now_s, self._pace)

    # -------------------------------------------------------------- what is said

    def state(self, now_s: float) -> VpnState:
        held, off = self._held, self._settings.vpn == core.OFF
        conf, look = held.conf or held.file.conf, held.look or Look()
        endpoints = (show_endpoint(p.endpoint) for p in conf.peers if p.endpoint) if conf else ()
        phase, detail = core.judge(
            Tale(
                self._settings.vpn,
                self._wish(now_s),
                is_set=held.setup is not None and held.look is not None,
                proven=self._is_proven(now_s),
                was_proven=self._watch.heard_s is not None,
                trouble=held.trouble,
                ends=core.ends(endpoints),
                notes=self._notes(),
            )
        )
        address = conf.interface.addresses[0] if conf and conf.interface.addresses else ""
        return VpnState(
            at_s=now_s,
            phase=phase,
            detail=detail,
            interface="" if held.setup is None else held.setup.name,
            address="" if off else address.partition("/")[0],
            handshake_unix_s=look.handshake_unix_s,
            public_key="" if off else held.public_key,
            key_is_owners=held.file.conf is not None and not held.file.conf.is_ours,
        )

    def _notes(self) -> tuple[str, ...]:
        coming = ("a new key waits until the master knows it",) if self._held.coming.conf else ()
        file = self._held.file.conf
        return (*coming, *(file.unheeded[:MOST_NOTES] if file is not None else ()))

    def close(self) -> None:
        """An orderly end: the tunnel goes."""
        deadline_s = time.monotonic() + END_S
        while self._turning.began_s is not None and (left_s := deadline_s - time.monotonic()) > 0:
            select.select([self._turning.fileno()], [], [], left_s)
            self._turning.result()
        if self._bell is not None:
            self._bell.close()
        if self._held.setup is not None or wg.exists(self._rounds.own.name):
            trouble = self._rounds.off(self._held).trouble
            if trouble:
                log.warning("the tunnel is not taken down: %s", trouble)


def _private_key(held: Held) -> str:
    return held.conf.interface.private_key if held.conf else ""


def _bell(name: str) -> Bell | None:
    try:
        return Bell(NETLINK_ROUTE, LINKS_CHANGED, name)
    except NftError as err:
        log.warning("the tunnel: %s; there is a look every few seconds", err)
        return None
