"""The tunnel's key is told to the master; with VPN=required nothing else comes before the tunnel;
TASK_LISTEN=vpn is bound for as long as the tunnel is there."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from procs.master_link import passage
from procs.master_link.passage import is_within
from shared.messages import LinkPhase
from tests.fakes.vpn_voice import VpnVoice, vpn_voice
from tests.master_link.rig import Rig, request, rig
from tests.master_link.tls_rig import node, tls_master

Scenario = Callable[[Rig, VpnVoice], Awaitable[None]]


def with_rig(scenario: Scenario, **settings: Any) -> None:
    async def run() -> None:
        async with rig(start=False, **settings) as r, vpn_voice(r.home) as voice:
            r.master.heartbeat_s = 1.0
            await scenario(r, voice)

    asyncio.run(run())


def keys(r: Rig) -> list[str]:
    """As the master was told them, one for each registration."""
    return [one.wireguard_public_key for one in r.master.memory.registrations]


def test_a_new_key_is_told_at_once_and_remembered_for_the_next_life() -> None:
    async def scenario(r: Rig, voice: VpnVoice) -> None:
        r.master.heartbeat_s = 60.0
        await r.start_link()
        await r.connected()
        assert keys(r) == [""]
        voice.down(public_key="first")
        await r.until(lambda: keys(r) == ["", "first"])
        voice.up(public_key="second")
        await r.until(lambda: keys(r) == ["", "first", "second"])
        assert r.link is not None
        await r.until(lambda: r.link is not None and r.link._passage.told == "second")
        await r.stop_link()
        voice.state = None
        await r.start_link()
        await r.until(lambda: len(keys(r)) == 4)
        assert keys(r)[-1] == "second", "silence takes no tunnel away"

    with_rig(scenario)


def test_with_vpn_off_no_key_is_told() -> None:
    async def scenario(r: Rig, voice: VpnVoice) -> None:
        voice.up()
        await r.start_link()
        await r.until(lambda: len(r.master.memory.heartbeats) > 2)
        assert keys(r) == [""]

    with_rig(scenario, VPN="off")


def test_nothing_but_registrations_comes_before_a_required_tunnel() -> None:
    async def scenario(r: Rig, voice: VpnVoice) -> None:
        await r.start_link()
        await r.until(lambda: r.link_state().phase is LinkPhase.WAITING)
        assert r.link_state().detail == "VPN=required: no word from the vpn process"
        voice.down("no handshake yet of a:1")
        await r.until(lambda: "no handshake yet of a:1" in r.link_state().detail)
        assert keys(r) == ["", "key"]
        voice.up(public_key="newer")
        await r.connected()
        await r.until(lambda: keys(r) == ["", "key", "newer"])
        assert r.master.memory.reports == []
        assert r.link_state().phase is LinkPhase.CONNECTED

    with_rig(scenario, VPN="required", RESOURCE_REPORT_INTERVAL="60")


def test_a_link_whose_required_tunnel_is_lost_is_left_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passage, "GRACE_S", 0.5)
    monkeypatch.setattr(passage, "LOOK_S", 0.05)

    async def scenario(r: Rig, voice: VpnVoice) -> None:
        voice.up()
        await r.start_link()
        await r.connected()
        voice.down("nothing is heard any more of a:1")
        await r.until(lambda: r.link_state().phase is LinkPhase.WAITING)
        assert "VPN=required: the tunnel is lost: nothing is heard" in r.link_state().detail
        await r.until(lambda: r.master.channel is None)
        beats = len(r.master.memory.heartbeats)
        await r.until(lambda: r.link_state().detail.startswith("VPN=required: nothing is heard"))
        assert len(r.master.memory.heartbeats) == beats
        voice.up()
        await r.connected()

    with_rig(scenario, VPN="required")


def test_a_tunnel_that_is_back_within_the_grace_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passage, "LOOK_S", 0.05)

    async def scenario(r: Rig, voice: VpnVoice) -> None:
        voice.up()
        await r.start_link()
        await r.connected()
        voice.down()
        beats = len(r.master.memory.heartbeats)
        await r.until(lambda: len(r.master.memory.heartbeats) > beats + 1)
        voice.up()
        await r.until(lambda: len(r.master.memory.heartbeats) > beats + 3)
        assert r.master.memory.hellos == 1
        assert len(keys(r)) == 1 or keys(r) == ["", "key"]

    with_rig(scenario, VPN="required")


def is_bound(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


def test_the_master_dials_in_the_tunnel_for_as_long_as_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passage, "UNBIND_S", 0.5)

    async def run() -> None:
        async with (
            tls_master(tmp_path / "master") as master,
            node(master.url, await master.token(), TASK_LISTEN="vpn:0") as r,
            vpn_voice(r.home) as voice,
        ):

            async def endpoint(begins: str) -> str:
                async with asyncio.timeout(20):
                    while True:
                        found = str((await master.nodes())[0]["task_endpoint"])
                        if found.startswith(begins) and bool(found) == bool(begins):
                            return found
                        await asyncio.sleep(0.05)

            await r.start_link()
            await r.joined()
            assert await endpoint("") == "", "there is no tunnel yet"
            voice.up("127.0.0.9")
            first = await endpoint("127.0.0.9:")
            assert is_bound(first)
            voice.up("127.0.0.10")
            second = await endpoint("127.0.0.10:")
            assert not is_bound(first)
            voice.state = None
            link = r.link
            assert link is not None
            await r.until(lambda: link._news.vpn() is None)
            for _ in range(3):
                await link._news.any.wait()
            assert link.session.task_endpoint == second, "silence is no news"
            voice.down(address="127.0.0.10")
            await endpoint("")
            assert not is_bound(second)

    asyncio.run(run())


def test_task_listen_in_a_tunnel_is_not_served_in_plain_text() -> None:
    async def scenario(r: Rig, voice: VpnVoice) -> None:
        voice.up("127.0.0.9")
        await r.start_link()
        await r.connected()
        assert (await r.master.assign(request())).accepted
        assert r.link is not None
        assert r.link.session.task_endpoint == ""

    with_rig(scenario, TASK_LISTEN="vpn:0")


@pytest.mark.parametrize(
    ("address", "within"),
    [
        pytest.param("10.8.0.1:50051", True, id="in it"),
        pytest.param("10.9.0.1:50051", False, id="beside it"),
        pytest.param("[fd00::1]:50051", True, id="IPv6"),
        pytest.param("master.example.org:50051", False, id="a name"),
    ],
)
def test_what_lies_in_the_tunnel(address: str, within: bool) -> None:
    assert is_within(address, ("10.8.0.2/16", "fd00::/8", "nonsense")) is within
    assert not is_within(address, ())
