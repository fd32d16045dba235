"""What the others say → what is wanted of the tunnel; what was heard → whether it lives."""

import pytest

from procs.vpn.core import (
    TOLD_WITHIN_S,
    Offer,
    Pace,
    Tale,
    Watch,
    Wish,
    is_proven,
    judge,
    moved,
    probe_due,
    seen,
    silence_due,
    wish,
)
from shared.messages import Tunnel, VpnPhase, VpnWant

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
OFFERED = Tunnel(server_public_key=KEY, endpoint="vpn:51820", allowed_ips=("10.8.0.0/16",))
WHOLE = Tunnel(
    address="10.8.0.2/32", server_public_key="K", endpoint="e:1", allowed_ips=("10.8.0.0/16",)
)
OWN = "this node's"
NOTHING, SILENT_LINK = VpnWant(at_s=1.0), None
KNOWN = VpnWant(at_s=1.0, public_key=OWN)
ASSIGNED = VpnWant(at_s=1.0, tunnel=WHOLE, public_key=OWN)
BARE = VpnWant(at_s=1.0, tunnel=Tunnel(address="10.8.0.2/32"))
HOMELESS = VpnWant(at_s=1.0, tunnel=Tunnel(server_public_key="K", endpoint="e:1"))


@pytest.mark.parametrize(
    ("want", "offer", "own_key", "waited_s", "wanted"),
    [
        pytest.param(None, None, "", 0.0, Wish(why="no word from"), id="no word"),
        pytest.param(
            None, Offer(OFFERED), OWN, 0.0, Wish(why="no word from"), id="no word of the link"
        ),
        pytest.param(NOTHING, None, "", 0.0, Wish(ask=True, why="asking"), id="none assigned"),
        pytest.param(
            NOTHING, Offer(problem="no route"), "", 0.0, Wish(ask=True, why="no route"),
            id="the master can't be asked",
        ),
        pytest.param(NOTHING, Offer(), "", 0.0, Wish(none=True, why="no tunnel"), id="none there"),
        pytest.param(
            NOTHING, Offer(OFFERED), "", 99.0, Wish(key=True, why="telling"), id="no key yet"
        ),
        pytest.param(
            NOTHING, Offer(OFFERED), OWN, TOLD_WITHIN_S - 1, Wish(key=True, why="telling"),
            id="the key is being told",
        ),
        pytest.param(ASSIGNED, None, OWN, 0.0, Wish(WHOLE, key=True), id="assigned"),
        pytest.param(ASSIGNED, Offer(OFFERED), "", 0.0, Wish(WHOLE, key=True), id="its word wins"),
        pytest.param(
            BARE, None, "", 0.0, Wish(key=True, ask=True, why="asking"), id="without its key"
        ),
        pytest.param(
            BARE, Offer(OFFERED), "", 0.0,
            Wish(Tunnel(address="10.8.0.2/32", server_public_key=KEY, endpoint="vpn:51820",
                        allowed_ips=("10.8.0.0/16",)), key=True),
            id="filled",
        ),
    ],
)  # fmt: skip
def test_what_is_wanted(
    want: VpnWant | None, offer: Offer | None, own_key: str, waited_s: float, wanted: Wish
) -> None:
    found = wish(want, offer, "node-1", own_key, waited_s)
    assert wanted.why in found.why
    assert (found.tunnel, found.key, found.none, found.ask) == (
        wanted.tunnel, wanted.key, wanted.none, wanted.ask
    )  # fmt: skip


@pytest.mark.parametrize(
    ("want", "waited_s"),
    [
        pytest.param(KNOWN, 0.0, id="the master knows the key and assigns nothing"),
        pytest.param(NOTHING, TOLD_WITHIN_S, id="nobody tells it the key"),
        pytest.param(HOMELESS, 0.0, id="an assignment without an address"),
    ],
)
def test_an_address_is_derived_where_none_is_assigned(want: VpnWant, waited_s: float) -> None:
    first = wish(want, Offer(OFFERED), "node-1", OWN, waited_s).tunnel
    assert first is not None
    assert first.address.startswith("10.8.")
    assert first == wish(want, Offer(OFFERED), "node-1", OWN, waited_s).tunnel
    assert first != wish(want, Offer(OFFERED), "node-2", OWN, waited_s).tunnel
    assert wish(want, Offer(OFFERED), "", OWN, waited_s).tunnel is None, "no node yet"


def test_only_key_and_endpoint_move() -> None:
    now = moved(WHOLE, OFFERED)
    assert now == Tunnel(
        address="10.8.0.2/32", server_public_key=KEY, endpoint="vpn:51820",
        allowed_ips=("10.8.0.0/16",),
    )  # fmt: skip
    assert moved(None, OFFERED) is None
    assert moved(WHOLE, None) == WHOLE


# ------------------------------------------------------------------ is it alive

PACE = Pace(look_s=5.0, probe_s=10.0, silent_s=30.0)


def test_it_is_proven_by_a_handshake_and_stays_so_while_something_is_heard() -> None:
    watch = Watch(since_s=100.0)
    watch = seen(watch, 0.0, 0, 101.0, 1001.0)
    assert not is_proven(watch, 101.0, PACE)
    watch = seen(watch, 1002.0, 92, 102.0, 1002.0)
    assert is_proven(watch, 102.0, PACE)
    watch = seen(watch, 1002.0, 92, 131.0, 1031.0)
    assert is_proven(watch, 131.0, PACE)
    assert not is_proven(watch, 132.0, PACE), "nothing for 30 s"
    watch = seen(watch, 1002.0, 124, 133.0, 1033.0)
    assert is_proven(watch, 133.0, PACE), "a keepalive is enough"


def test_an_interface_that_was_made_anew_has_to_prove_itself() -> None:
    watch = seen(Watch(since_s=0.0), 1000.0, 500, 1.0, 1001.0)
    assert not is_proven(seen(watch, 0.0, 0, 2.0, 1002.0), 2.0, PACE)


def test_bytes_without_a_valid_handshake_prove_nothing() -> None:
    watch = seen(Watch(since_s=0.0), 1000.0, 10, 1.0, 1000.0)
    watch = seen(watch, 1000.0, 20, 181.0, 1180.0)
    assert not is_proven(watch, 181.0, PACE)


@pytest.mark.parametrize(
    ("handshake_unix_s", "floor_unix_s", "proven"),
    [
        pytest.param(1000.0, 0.0, True, id="adopted"),
        pytest.param(820.0, 0.0, False, id="too old"),
        pytest.param(1000.0, 1000.0, False, id="with the key before"),
        pytest.param(1001.0, 1000.0, True, id="with this key"),
        pytest.param(0.0, 0.0, False, id="none"),
    ],
)
def test_the_first_look(handshake_unix_s: float, floor_unix_s: float, proven: bool) -> None:
    watch = seen(Watch(0.0, floor_unix_s), handshake_unix_s, 500, 1.0, 1001.0)
    assert is_proven(watch, 1.0, PACE) is proven


def test_silence_is_probed_and_told_again_and_again() -> None:
    watch = Watch(since_s=100.0)
    assert probe_due(watch, 100.0, PACE), "a handshake has to be asked for"
    watch = Watch(since_s=100.0, heard_s=100.0, probed_s=100.0)
    assert not probe_due(watch, 109.9, PACE)
    assert probe_due(watch, 110.0, PACE)
    assert not silence_due(watch, 129.9, PACE)
    assert silence_due(watch, 130.0, PACE)
    told = Watch(since_s=100.0, heard_s=100.0, told_silent_s=130.0)
    assert not silence_due(told, 159.9, PACE)
    assert silence_due(told, 160.0, PACE)


# ------------------------------------------------------------------ what is said


@pytest.mark.parametrize(
    ("tale", "phase", "word"),
    [
        pytest.param(Tale("off", Wish()), VpnPhase.OFF, "VPN=off", id="off"),
        pytest.param(
            Tale("off", Wish(), is_set=True, proven=True), VpnPhase.OFF, "VPN=off",
            id="off, while it goes",
        ),
        pytest.param(Tale("auto", Wish(why="no word")), VpnPhase.WAITING, "no word", id="no word"),
        pytest.param(Tale("auto", Wish()), VpnPhase.WAITING, "being set up", id="begins"),
        pytest.param(
            Tale("auto", Wish(none=True, why="no tunnel")), VpnPhase.NONE, "no tunnel", id="none"
        ),
        pytest.param(
            Tale("required", Wish(none=True)), VpnPhase.DOWN, "VPN=required", id="none, required"
        ),
        pytest.param(
            Tale("auto", Wish(), trouble="wg is missing"), VpnPhase.DOWN, "wg is missing",
            id="no tools",
        ),
        pytest.param(
            Tale("auto", Wish(), is_set=True, ends="e:1"), VpnPhase.DOWN,
            "no handshake yet with e:1", id="not proven",
        ),
        pytest.param(
            Tale("auto", Wish(), is_set=True, was_proven=True, ends="e:1", trouble="no address"),
            VpnPhase.DOWN, "nothing is heard any more of e:1; no address", id="lost",
        ),
        pytest.param(
            Tale("auto", Wish(), is_set=True, proven=True, ends="e:1", notes=("line 7: x",)),
            VpnPhase.UP, "through e:1; line 7: x", id="up",
        ),
        pytest.param(
            Tale("auto", Wish(), is_set=True, proven=True, ends="e:1", trouble="wg0.conf: mode"),
            VpnPhase.UP, "through e:1; wg0.conf: mode", id="up, though its new file is refused",
        ),
    ],
)  # fmt: skip
def test_what_is_said(tale: Tale, phase: VpnPhase, word: str) -> None:
    said = judge(tale)
    assert said[0] is phase
    assert word in said[1]
