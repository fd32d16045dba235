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
from procs.master.grpc_edge import is_loopback
from procs.master.main import AddressError, Settings, serve

WRONG_SETTINGS = 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def _program() -> None:
    """The reference master of HiveMind."""


@app.command("serve")
def _serve(
    listen: Annotated[str, typer.Option(help="HOST:PORT for workers (gRPC).")] = "127.0.0.1:50051",
    http: Annotated[str, typer.Option(help="HOST:PORT for clients (HTTP).")] = "127.0.0.1:8080",
    data: Annotated[
        Path | None,
        typer.Option(help="Where all is kept; default ~/.local/state/hivemind-master."),
    ] = None,
    trust_level: Annotated[
        int, typer.Option(min=0, max=3, help="Of nodes that join without a token.")
    ] = 0,
) -> None:
    """Serve workers and clients until stopped. Port 0 takes a free one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for library in ("alembic", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for name, address in (("--listen", listen), ("--http", http)):
        _check_address(name, address)
    settings = Settings(listen, http, data or _default_data(), trust_level)
    try:
        asyncio.run(serve(settings))
    except (AddressError, FilesError, DatabaseError) as err:
        _refuse(str(err))


def _default_data() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "hivemind-master"


def _check_address(name: str, address: str) -> None:
    port = re.fullmatch(r"(?:[^\s:]+|\[[^\s\]]+\]):(\d{1,5})", address)
    if port is None or int(port[1]) > 65535:
        _refuse(f"{name} {address}: it must be HOST:PORT")
    if not is_loopback(address):
        _refuse(f"{name} {address}: only a loopback address, since there is no encryption yet")


def _refuse(text: str) -> None:
    print(f"hivemind-master: {text}", file=sys.stderr)
    raise typer.Exit(WRONG_SETTINGS)


def main() -> None:
    app()
