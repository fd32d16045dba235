"""What the master says of its VPN over HTTPS, proven as all that it says. Blocks: in a thread."""

import json
from pathlib import Path
from typing import Any

from procs.vpn.conf import read_key
from procs.vpn.core import Offer
from shared.master_http import DISCOVERY, MasterHttpError, get
from shared.messages import Tunnel

PUBLIC_KEY = "/api/v1/vpn/public-key"


def ask(url: str, authority: Path) -> Offer:
    """`authority`: the file of the one that the node has joined, there or not."""
    try:
        trusted = authority.read_text()
    except OSError:
        trusted = ""
    try:
        document = json.loads(get(url, DISCOVERY, trusted).body)
        if not isinstance(document, dict):
            raise ValueError("it is no object")
        wireguard = document.get("wireguard")
        if wireguard is None:
            return Offer()
        key = read_key(get(url, PUBLIC_KEY, trusted).body.decode().strip())
        return Offer(_tunnel(wireguard, key))
    except MasterHttpError as err:
        return Offer(problem=str(err))
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        why = f"{type(err).__name__}: {err}"
        return Offer(problem=f"{url}: what it says of its VPN is wrong: {why}")


def _tunnel(wireguard: dict[str, Any], key: str) -> Tunnel:
    if wireguard["public_key"] != key:
        raise ValueError("it names two public keys; it may be changing it")
    return Tunnel(
        server_public_key=key,
        endpoint=str(wireguard["endpoint"]),
        allowed_ips=tuple(map(str, wireguard["allowed_ips"])),
    )
