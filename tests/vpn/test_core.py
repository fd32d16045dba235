"""Setting and master's word → what is said of the tunnel."""

import pytest

from procs.vpn.core import state
from shared.messages import Tunnel, VpnPhase, VpnState, VpnWant

NOTHING = VpnWant(at_s=1.0)
ASSIGNED = VpnWant(at_s=1.0, tunnel=Tunnel(address="10.7.0.2/24", endpoint="203.0.113.5:51820"))


@pytest.mark.parametrize(
    ("mode", "want", "phase", "word"),
    [
        pytest.param("off", None, VpnPhase.OFF, "VPN=off", id="off, no word"),
        pytest.param("off", ASSIGNED, VpnPhase.OFF, "VPN=off", id="off, though one is assigned"),
        pytest.param("auto", None, VpnPhase.WAITING, "no word", id="auto, no word"),
        pytest.param("required", None, VpnPhase.WAITING, "no word", id="required, no word"),
        pytest.param("auto", NOTHING, VpnPhase.NONE, "no tunnel", id="auto, the master has none"),
        pytest.param(
            "required", NOTHING, VpnPhase.DOWN, "VPN=required", id="required, the master has none"
        ),
        pytest.param("auto", ASSIGNED, VpnPhase.DOWN, "203.0.113.5:51820", id="auto, assigned"),
        pytest.param(
            "required", ASSIGNED, VpnPhase.DOWN, "203.0.113.5:51820", id="required, assigned"
        ),
    ],
)
def test_the_state_follows_the_setting_and_the_master(
    mode: str, want: VpnWant | None, phase: VpnPhase, word: str
) -> None:
    said = state(mode, want, now_s=12.5)
    assert (said.phase, said.at_s, said.synced) == (phase, 12.5, True)
    assert word in said.detail
    assert said.covered_bridges == ()


def test_no_firewall_is_claimed() -> None:
    assert state("off", None, 0.0) == VpnState(at_s=0.0, phase=VpnPhase.OFF, detail="VPN=off")
