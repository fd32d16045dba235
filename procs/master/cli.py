"""`hivemind-master`: the command line of the reference master."""

import asyncio
import logging
import os
import re
import sys
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated

import typer

from procs.master.database import DatabaseError
from procs.master.files import FilesError
from procs.master.grpc_edge import is_loopback, is_wildcard
from procs.master.identity import IdentityError
from procs.master.joining import WithoutToken
from procs.master.main import AddressError, Settings, serve
from procs.master.vpn import VpnSettings
from procs.master.wireguard import WireGuardError

WRONG_SETTINGS = 2

VpnSwitch = Annotated[
    bool, typer.Option("--vpn", help="A WireGuard tunnel for nodes; with --tls, needs NET_ADMIN.")
]
VpnEndpoint = Annotated[
    str, typer.Option(help="HOST:PORT (UDP) as nodes reach it; default: --host and --vpn-port.")
]
VpnRange = Annotated[str, typer.Option(help="Where nodes get their addresses from.")]
VpnPort = Annotated[int, typer.Option(min=1, max=65535, help="UDP, on all addresses.")]
VpnInterface = Annotated[str, typer.Option(help="The tunnel's interface on this machine.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def _program() -> None:
    """The reference master of HiveMind."""


@app.command("serve")
def _serve(
    listen: Annotated[str, typer.Option(help="HOST:PORT for workers (gRPC).")] = "127.0.0.1:50051",
    http: Annotated[
        str, typer.Option(help="HOST:PORT for discovery and clients.")
    ] = "127.0.0.1:8080",
    tls: Annotated[
        bool, typer.Option("--tls", help="TLS also on loopback; elsewhere there is nothing else.")
    ] = False,
    join: Annotated[
        str, typer.Option(help="HOST:PORT for nodes that join; default: --listen's next port.")
    ] = "",
    host: Annotated[
        str, typer.Option(help="The name or address under which workers reach --listen and --join.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Where all is kept; default ~/.local/state/hivemind-master."),
    ] = None,
    trust_level: Annotated[
        int,
        typer.Option(min=0, max=3, help="Of nodes that join, unless their token says another."),
    ] = 0,
    without_token: Annotated[
        WithoutToken, typer.Option(help="With TLS, nodes without a token: level 0, wait, or never.")
    ] = WithoutToken.APPROVE,
    vpn: VpnSwitch = False,
    vpn_endpoint: VpnEndpoint = "",
    vpn_range: VpnRange = "10.8.0.0/16",
    vpn_port: VpnPort = 51820,
    vpn_interface: VpnInterface = "hivemind0",
) -> None:
    """Serve workers and clients until stopped. Port 0 takes a free one."""
    _set_up_log()
    addresses = {"--listen": listen, "--http": http, "--join": join or _next_port(listen)}
    for name, address in addresses.items():
        _check_address(name, address)
    tls = tls or vpn or not all(map(is_loopback, addresses.values()))
    if join and not tls:
        _refuse("--join: with plain text, nodes join at --listen; see --tls")
    join = addresses["--join"]
    if not host and any(is_wildcard(address) for address in (listen, join)):
        _refuse("--host is needed: workers are told it instead of the address that is listened on")
    told = vpn_endpoint or f"{host or listen.rpartition(':')[0]}:{vpn_port}"
    settings = Settings(
        listen,
        http,
        data or _default_data(),
        trust_level,
        tls=tls,
        join=join,
        host=host,
        without_token=without_token,
        vpn=_vpn_settings(told, vpn_range, vpn_port, vpn_interface) if vpn else None,
    )
    try:
        asyncio.run(serve(settings))
    except (AddressError, FilesError, DatabaseError, IdentityError, WireGuardError) as err:
        _refuse(str(err))


def _set_up_log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for library in ("alembic", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _next_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}" if port.isdecimal() and port != "0" else f"{host}:0"


def _vpn_settings(endpoint: str, network: str, port: int, interface: str) -> VpnSettings:
    _check_address("--vpn-endpoint", endpoint)
    try:
        usable = 8 <= (parsed := IPv4Network(network)).prefixlen <= 30
    except ValueError:
        usable = False
    if not usable:
        _refuse(f"--vpn-range {network}: it must be a range such as 10.8.0.0/16, /8 to /30")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,15}", interface):
        _refuse(f"--vpn-interface {interface}: 1 to 15 of A-Z, a-z, 0-9, _ -")
    return VpnSettings(endpoint, parsed, port, interface)


def _default_data() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "hivemind-master"


def _check_address(name: str, address: str) -> None:
    port = re.fullmatch(r"(?:[^\s:]+|\[[^\s\]]+\]):(\d{1,5})", address)
    if port is None or int(port[1]) > 65535:
        _refuse(f"{name} {address}: it must be HOST:PORT")


def _refuse(text: str) -> None:
    print(f"hivemind-master: {text}", file=sys.stderr)
    raise typer.Exit(WRONG_SETTINGS)


def main() -> None:
    app()
