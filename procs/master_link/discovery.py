"""Where the master's gRPC is: the discovery document. Blocks: call in a thread.

This version speaks plain text, so to a loopback master only.
"""

import http.client
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from shared.settings import is_loopback, split_address

PATH = "/.well-known/hivemind"
TIMEOUT_S = 10.0
MAX_BYTES = 2**20


class DiscoveryError(Exception):
    """The document can't be had or can't be used; the text says why, for the owner."""


class NoTlsError(DiscoveryError):
    """The URL asks for TLS, which this version has not."""


@dataclass(frozen=True)
class Discovered:
    """What the document says, as far as it is used."""

    grpc: str
    join: str


def discover(url: str) -> Discovered:
    parts = urlsplit(url)
    if parts.scheme != "http" or not is_loopback(parts.hostname or ""):
        raise NoTlsError(
            f"{url}: this version speaks plain text to a loopback master only (http://127.0.0.1:…)"
        )
    return _read(_fetch(parts.hostname or "", parts.port or 80, parts.path.rstrip("/") + PATH), url)


def _fetch(host: str, port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:  # a redirect too: it is followed nowhere
            raise DiscoveryError(f"http://{host}:{port}{path} answers {response.status}")
        return response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as err:
        raise DiscoveryError(f"http://{host}:{port}{path}: {err}") from err
    finally:
        connection.close()


def _read(raw: bytes, url: str) -> Discovered:
    try:
        document = json.loads(raw)
        grpc = document["grpc"]
        addresses = Discovered(grpc, document.get("join", grpc))
        for address in (addresses.grpc, addresses.join):
            host, _ = split_address(address)
            if not is_loopback(host):
                raise ValueError(f"{address} is not a loopback address, as {url} is")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise DiscoveryError(f"{url}{PATH} is not a discovery document: {err!r}") from err
    return addresses
