"""The tunnel's key is changed: the old one goes when the master knows the new, whoever dies."""

import time

import pytest

from procs.vpn.conf import parse
from shared.messages import VpnPhase, VpnState
from tests.vpn.test_tunnel import passes
from tests.vpn.tunnels import Machine, machine


def asked(one: Machine, before: VpnState) -> VpnState:
    """The new key is said, and the tunnel runs with the old one."""
    one.key_after_unix_s = time.time()
    state = one.until(lambda state: state.public_key != before.public_key)
    assert state.phase is VpnPhase.UP
    assert "a new key waits" in one.until(lambda state: "waits" in state.detail).detail
    passes(one)
    return state


def known(one: Machine, old: VpnState, new: VpnState) -> None:
    """The server has the new key in the old one's place."""
    one.net.has_no_peer(old.public_key)
    one.net.has_peer(new.public_key)


def changed(one: Machine, new: VpnState) -> VpnState:
    state = one.until(lambda state: "waits" not in state.detail and state.phase is VpnPhase.UP)
    assert state.public_key == new.public_key
    assert new.public_key in one.run("wg", "show", one.interface, "public-key")
    conf = parse(one.path.read_text())
    assert conf.is_ours
    assert [path.name for path in one.home.iterdir()] == ["wg0.conf"]
    passes(one)
    return state


def test_a_key_is_changed_once_and_nothing_is_cut() -> None:
    with machine() as one:
        old = one.join()
        new = asked(one, old)
        known(one, old, new)
        began_s = time.monotonic()
        one.assign(one.net.tunnel(), new.public_key)
        after = changed(one, new)
        print(f"the key is changed: without a tunnel for {time.monotonic() - began_s:.1f} s")
        one.begin()
        state = one.up()
        assert (state.public_key, "waits" in state.detail) == (after.public_key, False), "once"


@pytest.mark.parametrize("killed", ["asked", "known", "told"])
def test_a_life_that_ends_in_between_is_gone_on_with(killed: str) -> None:
    with machine() as one:
        old = one.join()
        new = asked(one, old)
        if killed == "asked":
            one.begin()
            assert one.up().public_key == new.public_key
        known(one, old, new)
        if killed == "known":
            one.begin()
        one.assign(one.net.tunnel(), new.public_key)
        if killed == "told":
            one.until(lambda _: new.public_key in one.run("wg", "show", one.interface))
            one.begin()
        changed(one, new)


def test_a_master_whose_answer_was_lost_is_found_by_trying_both_keys() -> None:
    with machine() as one:
        old = one.join()
        new = asked(one, old)
        known(one, old, new)
        changed(one, new)


def test_in_an_outage_both_keys_are_kept() -> None:
    with machine() as one:
        old = one.join()
        new = asked(one, old)
        one.run("ip", "link", "set", "eth0", "down")
        one.until(lambda _: new.public_key in one.run("wg", "show", one.interface))
        one.until(lambda _: old.public_key in one.run("wg", "show", one.interface))
        assert {path.name for path in one.home.iterdir()} == {"wg0.conf", "wg0.conf.next"}


def test_a_file_that_the_owner_brings_meanwhile_ends_it() -> None:
    with machine() as one:
        old = one.join()
        asked(one, old)
        text = one.path.read_text() + "# mine\n"
        one.path.write_text(text)
        state = one.until(lambda state: state.key_is_owners)
        assert (state.public_key, "waits" in state.detail) == (old.public_key, False)
        one.begin()
        assert one.up().public_key == old.public_key
        assert one.path.read_text() == text


def test_a_clock_that_goes_back_makes_no_key_after_key() -> None:
    with machine() as one:
        old = one.join()
        one.key_after_unix_s = time.time() + 5000
        new = one.until(lambda state: state.public_key != old.public_key)
        known(one, old, new)
        one.assign(one.net.tunnel(), new.public_key)
        changed(one, new)
        one.begin()
        state = one.up()
        assert (state.public_key, "waits" in state.detail) == (new.public_key, False)
