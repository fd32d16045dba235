"""The tunnel's life: is there a wg0.conf? If not: make the key here, write the file. Bring the
tunnel up, prove it by a handshake, watch it, heal it.

A round, in a thread, compares what should be with what is and acts on the difference; adopting
what a killed life left behind is the same round. When there is one, tunnel_watch.py says. At an
orderly end the tunnel goes; it outlives a kill.
"""

import logging
import time
from dataclasses import dataclass, field, replace

from procs.vpn import conf_file, wg
from procs.vpn.conf import (
    KEEPALIVE_S,
    Conf,
    Endpoint,
    Interface,
    Peer,
    read_address,
    read_endpoint,
    read_key,
    read_network,
    show_endpoint,
    written,
)
from procs.vpn.conf_file import ABSENT, ConfFile, ConfFileError
from procs.vpn.core import Wish
from procs.vpn.tunnel import MTU, Setup, mark_of, nothing, own, probed, setup
from procs.vpn.wg import Look, TunnelError
from shared.messages import Tunnel
from shared.settings import Settings

log = logging.getLogger("vpn")

PROOF_S, PROOF_LOOK_S = 1.0, 0.05  # a handshake takes a round trip; longer ones are seen later


WAITING = Wish()


class AssignmentError(Exception):
    """What the master says can't be made a configuration of; the text says why."""


def generate_config(private_key: str, tunnel: Tunnel | None, key_made_unix_s: float) -> Conf:
    """The worker's own wg0.conf; without a tunnel it holds only the key. Each word of the master's
    is checked: no line of the file is its to choose."""
    if tunnel is None:
        return written(Interface(private_key), (), key_made_unix_s)
    try:
        peer = Peer(
            public_key=read_key(tunnel.server_public_key),
            endpoint=read_endpoint(tunnel.endpoint),
            allowed_ips=tuple(dict.fromkeys(map(read_network, tunnel.allowed_ips))),
            keepalive_s=KEEPALIVE_S,
        )
        interface = Interface(private_key, (read_address(tunnel.address),))
    except ValueError as err:
        raise AssignmentError(f"the master's word of the tunnel can't be used: {err}") from err
    return written(interface, (peer,), key_made_unix_s)


# ------------------------------------------------------------------ a round, in a thread


@dataclass(frozen=True)
class Order:
    """What a round is told by the loop. `anew`: look for the other end again. `told_key`: the
    public key that the master knows."""

    wish: Wish = WAITING
    told_key: str = ""
    key_after_unix_s: float = 0.0
    check: bool = False  # the interface may have been touched
    anew: bool = False
    probe: bool = False
    proven: bool = False  # with the key in use


@dataclass(frozen=True)
class Held:
    """What the last round found and did. `coming`: the file of the key that is to replace the one
    in use, once the master knows it; `uses_coming`: the tunnel runs with it."""

    file: ConfFile = ABSENT
    coming: ConfFile = ABSENT
    uses_coming: bool = False
    told_key: str = ""
    public_keys: dict[str, str] = field(default_factory=dict, repr=False)
    places: dict[Endpoint, Endpoint] = field(default_factory=dict)
    conf: Conf | None = None  # in force
    setup: Setup | None = None
    look: Look | None = None
    trouble: str = ""

    @property
    def public_key(self) -> str:
        """Of the newest key, which the master should know. A refused file changes nothing."""
        newest = self.coming.conf or self.file.conf or self.conf
        return self.public_keys.get(newest.interface.private_key, "") if newest else ""


class Rounds:
    """Blocks: each method belongs to the round's thread, one at a time."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.wireguard_config
        self._coming_path = self._path.with_name(f"{self._path.name}.next")
        self.own = own(settings.home)

    def off(self, held: Held) -> Held:
        """There should be no tunnel. Its file stays."""
        try:
            wg.remove(nothing(self.own))
        except TunnelError as err:
            return replace(held, trouble=str(err))
        return Held()

    def turn(self, order: Order, held: Held) -> Held:
        before, held = held, replace(held, trouble="")
        try:
            held = self._files(order, held)
            held = self._promoted(held) if order.proven else held
            held = self._choose(order, held)
            held = self._set(order, held)
        except (TunnelError, ConfFileError, AssignmentError) as err:
            held = replace(held, trouble=str(err))
        if held.file.problem:
            held = replace(held, trouble=held.file.problem)
        return self._look(order, before, held)

    # -------------------------------------------------------------- the files

    def _files(self, order: Order, held: Held) -> Held:
        """Read; make or bring up to date what is the worker's own."""
        held = replace(
            held,
            file=conf_file.read(self._path, held.file),
            coming=conf_file.read(self._coming_path, held.coming),
        )
        if held.file.conf is None or not held.file.conf.is_ours:
            held = replace(held, coming=ABSENT)  # of a file that is not there any more
        if not held.file.problem:
            held = self._generated(order, held)
            held = self._rotated(order, held)
        for file in (held.file, held.coming):
            if file.conf and file.conf.interface.private_key not in held.public_keys:
                key = file.conf.interface.private_key
                held = replace(held, public_keys={**held.public_keys, key: wg.public_key(key)})
        return held

    def _generated(self, order: Order, held: Held) -> Held:
        conf, tunnel = held.file.conf, order.wish.tunnel
        if (conf is not None and not conf.is_ours) or not (tunnel or order.wish.key):
            return held
        if conf is None:
            key, made_unix_s = wg.make_key(), time.time()
        else:
            key, made_unix_s = conf.interface.private_key, conf.key_made_unix_s
            if tunnel is None:
                return held
        wanted = generate_config(key, tunnel, made_unix_s)
        if conf is not None and wanted.text == conf.text:
            return held
        if conf is None:
            conf_file.remove(self._coming_path)
        log.info("%s is %s", self._path, "made" if conf is None else "brought up to date")
        return replace(held, file=conf_file.write(self._path, wanted, held.file))

    def _rotated(self, order: Order, held: Held) -> Held:
        """The key that is to come, on disk before anyone is told of it."""
        conf, after_unix_s = held.file.conf, order.key_after_unix_s
        if conf is None or not conf.is_ours or held.coming.conf is not None:
            return held
        if conf.key_made_unix_s >= after_unix_s:
            return held
        coming = generate_config(wg.make_key(), None, max(time.time(), after_unix_s))
        log.info("a new key is made, as the owner asks")
        return replace(held, coming=conf_file.write(self._coming_path, coming, held.coming))

    # -------------------------------------------------------------- the key in use

    def _choose(self, order: Order, held: Held) -> Held:
        """The coming key once the master knows it; in silence the other one is tried in turn."""
        if held.coming.conf is None:
            return replace(held, uses_coming=False, told_key=order.told_key)
        coming_key = held.public_keys[held.coming.conf.interface.private_key]
        uses = held.uses_coming
        if order.told_key == coming_key != held.told_key:
            uses = True
        elif order.anew:
            uses = not uses
        return replace(held, uses_coming=uses, told_key=order.told_key)

    def _wanted(self, held: Held) -> Conf | None:
        conf, coming = held.file.conf, held.coming.conf
        if conf is None or coming is None or not held.uses_coming:
            return conf
        interface = replace(conf.interface, private_key=coming.interface.private_key)
        return written(interface, conf.peers, coming.key_made_unix_s)

    def _promoted(self, held: Held) -> Held:
        """The coming key is proven: the old one is forgotten."""
        conf = self._wanted(held)
        if conf is None or not held.uses_coming:
            return held
        file = conf_file.write(self._path, conf, held.file)
        conf_file.remove(self._coming_path)
        log.info("the tunnel has its new key")
        return replace(held, file=file, coming=ABSENT, uses_coming=False)

    # -------------------------------------------------------------- the interface

    def _set(self, order: Order, held: Held) -> Held:
        conf = self._wanted(held)
        if conf is None or not conf.peers:
            return held
        if order.wish.none and conf.is_ours:
            if held.setup is not None or wg.exists(self.own.name):
                wg.remove(nothing(self.own))
            return replace(held, conf=None, setup=None, look=None)
        unchanged = conf == held.conf and not (order.anew or order.check)
        if unchanged and not _unknown(conf, held.places) and wg.exists(self.own.name):
            return held
        places = self._places(conf, held.places, order.anew)
        wanted = setup(self.own, conf, places, self._link_mtu(conf, places))
        if held.setup is not None and wanted.mtu == MTU:
            wanted = replace(wanted, mtu=held.setup.mtu)
        key, before = conf.interface.private_key, held.conf
        wg.ensure(wanted, new_key=before is not None and before.interface.private_key != key)
        unknown = ", ".join(map(show_endpoint, _unknown(conf, places)))
        trouble = f"no address is known of {unknown}" if unknown else ""
        return replace(held, conf=conf, setup=wanted, places=places, trouble=trouble)

    def _link_mtu(self, conf: Conf, places: dict[Endpoint, Endpoint]) -> int | None:
        mark = mark_of(self.own, conf, places)
        ways = (wg.mtu_towards(place, mark) for place in places.values())
        return min((way for way in ways if way is not None), default=None)

    @staticmethod
    def _places(
        conf: Conf, known: dict[Endpoint, Endpoint], anew: bool
    ) -> dict[Endpoint, Endpoint]:
        """Where each endpoint is; `anew`: asked again, and another address of its tried."""
        found: dict[Endpoint, Endpoint] = {}
        for endpoint in (peer.endpoint for peer in conf.peers if peer.endpoint):
            place = known.get(endpoint)
            if place is None or anew:
                places = wg.places_of(endpoint)
                after = places.index(place) + 1 if place in places else 0
                place = places[after % len(places)] if places else place
            if place is not None:
                found[endpoint] = place
        return found

    def _look(self, order: Order, before: Held, held: Held) -> Held:
        if held.conf is None:
            return held
        deadline_s = time.monotonic() + (PROOF_S if held.setup != before.setup else 0.0)
        try:
            if order.probe or held.setup != before.setup:
                wg.probe(self.own.name, probed(held.conf))
            look = wg.look(self.own.name)
            while look and not look.handshake_unix_s and time.monotonic() < deadline_s:
                time.sleep(PROOF_LOOK_S)
                look = wg.look(self.own.name)
        except TunnelError as err:
            return replace(held, look=None, trouble=held.trouble or str(err))
        return replace(held, look=look)


def _unknown(conf: Conf, places: dict[Endpoint, Endpoint]) -> list[Endpoint]:
    """Endpoints whose addresses nobody knows."""
    wanted = (peer.endpoint for peer in conf.peers if peer.endpoint)
    return [endpoint for endpoint in wanted if endpoint not in places]
