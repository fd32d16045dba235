"""What the vpn process says of the tunnel. Pure: no clock, no sockets, no commands."""

from shared.messages import VpnPhase, VpnState, VpnWant

OFF, REQUIRED = "off", "required"  # of the setting VPN; the third is auto


def state(mode: str, want: VpnWant | None, now_s: float) -> VpnState:
    """The tunnel as it is; `want` is the newest that the master's link has said, None: nothing."""
    phase, detail = _judge(mode, want)
    return VpnState(at_s=now_s, phase=phase, detail=detail)


def _judge(mode: str, want: VpnWant | None) -> tuple[VpnPhase, str]:
    if mode == OFF:
        return VpnPhase.OFF, "VPN=off"
    if want is None:
        return VpnPhase.WAITING, "no word from the master yet"
    if want.tunnel is not None:
        where = want.tunnel.endpoint
        detail = f"the master assigned a tunnel at {where}; this version does not bring it up"
        return VpnPhase.DOWN, detail
    if mode == REQUIRED:
        return VpnPhase.DOWN, "VPN=required, and the master has no tunnel for this node"
    return VpnPhase.NONE, "the master has no tunnel for this node"
