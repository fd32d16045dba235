"""`hivemind-master`: the command line of the reference master."""

import asyncio
import logging
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from procs.master.database import DatabaseError
from procs.master.files import FilesError
from procs.master.grpc_edge import is_loopback, is_wildcard
from procs.master.identity import IdentityError
from procs.master.joining import WithoutToken
from procs.master.main import AddressError, Settings, serve

WRONG_SETTINGS = 2

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
) -> None:
    """Serve workers and clients until stopped. Port 0 takes a free one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for library in ("alembic", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)
    addresses = {"--listen": listen, "--http": http, "--join": join or _next_port(listen)}
    for name, address in addresses.items():
        _check_address(name, address)
    tls = tls or not all(map(is_loopback, addresses.values()))
    if join and not tls:
        _refuse("--join: with plain text, nodes join at --listen; see --tls")
    join = addresses["--join"]
    if not host and any(is_wildcard(address) for address in (listen, join)):
        _refuse("--host is needed: workers are told it instead of the address that is listened on")
    settings = Settings(
        listen,
        http,
        data or _default_data(),
        trust_level,
        tls=tls,
        join=join,
        host=host,
        without_token=without_token,
    )
    try:
        asyncio.run(serve(settings))
    except (AddressError, FilesError, DatabaseError, IdentityError) as err:
        _refuse(str(err))


def _next_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}" if port.isdecimal() and port != "0" else f"{host}:0"


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
