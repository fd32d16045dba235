"""What the vpn process wants of the tunnel, and says of it. Pure: no clock, sockets, commands."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from procs.vpn.tunnel import derived_address
from shared.messages import Tunnel, VpnPhase, VpnWant

OFF, REQUIRED = "off", "required"  # of the setting VPN; the third is auto
TOLD_WITHIN_S = 30.0  # a master's link that is there registers the key at once
HANDSHAKE_LASTS_S = 180.0  # WireGuard lets nothing through on an older one


@dataclass(frozen=True)
class Pace:
    """How often there is a look; when silence is asked about, and when it counts."""

    look_s: float = 5.0
    probe_s: float = 10.0  # the other end answers within as many, or on its own 10 s later
    silent_s: float = 30.0  # two probes, and WireGuard's own handshake after 15 s: all unanswered
    ask_s: float = 10.0  # the master, at most so often
    ask_again_s: float = 600.0  # one that has no VPN


# ------------------------------------------------------------------ what is wanted


@dataclass(frozen=True)
class Offer:
    """What the master says of its VPN over HTTPS. `tunnel`, without an address, is None where it
    has none. `problem`: there is no answer."""

    tunnel: Tunnel | None = None
    problem: str = ""


@dataclass(frozen=True)
class Wish:
    """`tunnel`: what a generated file should say; None: it stays as it is.

    `key`: there should be a key, whatever else. `none`: the master has no tunnel, for sure.
    `ask`: the master's HTTPS should be asked. `why`: what is waited for.
    """

    tunnel: Tunnel | None = None
    key: bool = False
    none: bool = False
    ask: bool = False
    why: str = ""


def wish(
    want: VpnWant | None, offer: Offer | None, node_id: str, own_key: str, waited_s: float
) -> Wish:
    """`want`: the master's link's word, `offer`: the master's own. `waited_s`: since the key is
    said. None, or a problem in it: no news, and nothing is changed because of it."""
    if want is None:
        return Wish(why="no word from the master yet")
    offered = offer.tunnel if offer is not None else None
    if want.tunnel is None:
        return _unassigned(want, offer, node_id, own_key, waited_s)
    tunnel = _filled(want.tunnel, offered)
    if not (tunnel.server_public_key and tunnel.endpoint and tunnel.allowed_ips):
        return Wish(key=True, ask=True, why=_why(offer, "asking the master for its VPN's key"))
    if not tunnel.address:
        return _derived(tunnel, node_id)
    return Wish(tunnel, key=True)


def _unassigned(
    want: VpnWant, offer: Offer | None, node_id: str, own_key: str, waited_s: float
) -> Wish:
    if offer is None or offer.problem:
        return Wish(ask=True, why=_why(offer, "asking the master whether it has a VPN"))
    if offer.tunnel is None:
        return Wish(none=True, why="the master has no tunnel for this node")
    if not own_key or (want.public_key != own_key and waited_s < TOLD_WITHIN_S):
        return Wish(key=True, why="telling the master this node's key")
    return _derived(offer.tunnel, node_id)


def _derived(tunnel: Tunnel, node_id: str) -> Wish:
    if not node_id:
        return Wish(key=True, why="no word of this node's id yet")
    address = derived_address(node_id, tunnel.allowed_ips)
    if not address:
        return Wish(key=True, why="the master gave no address, and none follows from its ranges")
    return Wish(msgspec.structs.replace(tunnel, address=address), key=True)


def _filled(tunnel: Tunnel, offered: Tunnel | None) -> Tunnel:
    if offered is None:
        return tunnel
    return msgspec.structs.replace(
        tunnel,
        server_public_key=tunnel.server_public_key or offered.server_public_key,
        endpoint=tunnel.endpoint or offered.endpoint,
        allowed_ips=tunnel.allowed_ips or offered.allowed_ips,
    )


def moved(tunnel: Tunnel | None, offered: Tunnel | None) -> Tunnel | None:
    """With the key and the endpoint that the master's HTTPS named after it fell silent."""
    if tunnel is None or offered is None:
        return tunnel
    return msgspec.structs.replace(
        tunnel, server_public_key=offered.server_public_key, endpoint=offered.endpoint
    )


def _why(offer: Offer | None, otherwise: str) -> str:
    return offer.problem if offer is not None and offer.problem else otherwise


# ------------------------------------------------------------------ is it alive


@dataclass(frozen=True)
class Watch:
    """What was heard of the other end. `heard_s` None: nothing yet.

    `floor_unix_s`: a handshake that is not newer proves nothing, it was with another key.
    """

    since_s: float  # when the tunnel was set as it is
    floor_unix_s: float = 0.0
    heard_s: float | None = None
    received_bytes: int | None = None
    handshake_unix_s: float = 0.0
    probed_s: float = float("-inf")
    told_silent_s: float = float("-inf")


def seen(
    watch: Watch, handshake_unix_s: float, received_bytes: int, now_s: float, now_unix_s: float
) -> Watch:
    """A look. A handshake that was there before this life counts as heard, until it is silent."""
    if handshake_unix_s < watch.handshake_unix_s:  # the interface was made anew: nothing is proven
        watch = replace(watch, since_s=now_s, heard_s=None, received_bytes=None)
    counts = (
        handshake_unix_s > watch.floor_unix_s
        and now_unix_s - handshake_unix_s < HANDSHAKE_LASTS_S
    )
    is_news = (
        watch.heard_s is None
        or handshake_unix_s > watch.handshake_unix_s
        or (watch.received_bytes is not None and received_bytes > watch.received_bytes)
    )
    return replace(
        watch,
        heard_s=now_s if counts and is_news else watch.heard_s,
        received_bytes=received_bytes,
        handshake_unix_s=handshake_unix_s,
    )


def is_proven(watch: Watch, now_s: float, pace: Pace) -> bool:
    return watch.heard_s is not None and now_s - watch.heard_s < pace.silent_s


def probe_due(watch: Watch, now_s: float, pace: Pace) -> bool:
    """At once where nothing was heard yet: a handshake has to be asked for."""
    quiet_since_s = float("-inf") if watch.heard_s is None else watch.heard_s
    return now_s - max(quiet_since_s, watch.probed_s) >= pace.probe_s


def silence_due(watch: Watch, now_s: float, pace: Pace) -> bool:
    """Again and again, each `silent_s` of silence."""
    heard_s = watch.since_s if watch.heard_s is None else watch.heard_s
    return now_s - max(watch.since_s, heard_s, watch.told_silent_s) >= pace.silent_s


# ------------------------------------------------------------------ what is said


@dataclass(frozen=True)
class Tale:
    """What `judge` needs to know of the tunnel. `ends`: the other ends, as they are written."""

    mode: str
    wish: Wish
    is_set: bool = False  # there is an interface with another end
    proven: bool = False
    was_proven: bool = False
    trouble: str = ""
    ends: str = ""
    notes: tuple[str, ...] = ()


def judge(tale: Tale) -> tuple[VpnPhase, str]:
    if tale.mode == OFF:
        return VpnPhase.OFF, "VPN=off"
    if tale.is_set and tale.proven:
        return VpnPhase.UP, _told(f"through {tale.ends}", tale.trouble, *tale.notes)
    if tale.is_set:
        heard = "nothing is heard any more of" if tale.was_proven else "no handshake yet with"
        said = f"{heard} {tale.ends}"
        return VpnPhase.DOWN, _told(said, tale.trouble, tale.wish.why, *tale.notes)
    if tale.trouble:
        return VpnPhase.DOWN, _told(tale.trouble, *tale.notes)
    if tale.wish.none and tale.mode == REQUIRED:
        return VpnPhase.DOWN, "VPN=required, and the master has no tunnel for this node"
    phase = VpnPhase.NONE if tale.wish.none else VpnPhase.WAITING
    return phase, _told(tale.wish.why or "the tunnel is being set up", *tale.notes)


def _told(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def ends(endpoints: Iterable[str]) -> str:
    return ", ".join(endpoints) or "an other end that calls"
