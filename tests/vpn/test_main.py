"""The vpn process under a real supervisord, with a master's link that is only a socket."""

import time

import msgspec
import pytest

from shared.bus import Bus
from shared.messages import ProcessState, Tunnel, VpnPhase, VpnState, VpnWant
from tests.fakes.supervised import Supervised, supervised


def heard(worker: Supervised, phase: VpnPhase) -> VpnState:
    return worker.next(VpnState, lambda state: state.phase is phase)


def test_what_the_master_says_is_said_at_once_and_kept_when_it_falls_silent() -> None:
    with supervised(["vpn"]) as worker:
        heard(worker, VpnPhase.WAITING)
        link = Bus(worker.home, "master_link")
        tunnel = Tunnel(address="10.7.0.2/24", endpoint="203.0.113.5 51820", allowed_ips=("all",))
        tunnel = msgspec.structs.replace(tunnel, server_public_key="none")
        while True:  # serve the replay until the process has heard
            link.publish(VpnWant(at_s=time.monotonic(), tunnel=tunnel))
            link.wait(0.05)
            said = worker.next(VpnState)
            if said.phase is not VpnPhase.WAITING:
                break
        link.close()
        assert said.phase is VpnPhase.DOWN
        assert "the master's word of the tunnel can't be used: must be a key" in said.detail
        last_heard_s = said.at_s
        later = worker.next(VpnState, lambda state: state.at_s > last_heard_s + 4)
        assert later.phase is VpnPhase.DOWN
        assert not (worker.home / "wg0.conf").exists()


@pytest.mark.parametrize(
    ("setting", "phase"),
    [
        pytest.param("off", VpnPhase.OFF, id="off"),
        pytest.param("required", VpnPhase.WAITING, id="required, no word yet"),
    ],
)
def test_the_setting_is_obeyed(setting: str, phase: VpnPhase) -> None:
    with supervised(["vpn"], VPN=setting) as worker:
        heard(worker, phase)


def wrong_setting(configuration: str) -> str:
    return configuration.replace("[program:vpn]", '[program:vpn]\nenvironment = VPN="maybe"')


def test_a_wrong_setting_is_one_clear_line_and_it_stays_down() -> None:
    with supervised(["vpn", "watchdog"], wrong_setting) as worker:

        def is_down(state: ProcessState) -> bool:
            return any((p.name, p.state) == ("vpn", "EXITED") for p in state.processes)

        state = worker.next(ProcessState, is_down)
        assert state.processes[0].detail == "wrong settings: see its log"
        later = worker.next(ProcessState, lambda later: later.at_s > state.at_s + 3)
        assert (later.processes[0].state, later.processes[0].restarts) == ("EXITED", 0)
