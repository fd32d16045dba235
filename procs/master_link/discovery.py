"""Where the master's gRPC is, and which authority it has: the discovery document, proven.

Blocks: call in a thread. Over https the document is believed only if the stored authority, the
join token's digest, or the machine's trust store says so; over http only on loopback.
"""

import json
from dataclasses import dataclass, replace

from shared.certificate import certificates, digest_of, with_digest
from shared.join_token import Token
from shared.master_http import (
    DISCOVERY,
    Answer,
    MasterHttpError,
    UntrustedError,
    get,
    get_unverified,
)
from shared.settings import is_loopback, split_address

MOST_SHOWN = 3
_KNOWN = "this node has joined {}: a master that was set up anew gives a new join token"


class DocumentError(MasterHttpError):
    """The document can't be used; the text says why, for the owner."""


@dataclass(frozen=True)
class Discovered:
    """What the document says, as far as it is used. `authority` is empty with plain text.

    `inside`: where gRPC is reached through the tunnel, if the master says so. `ahead_s`: this
    machine's clock against the master's.
    """

    grpc: str
    join: str
    authority: str = ""
    ahead_s: float = 0.0
    inside: str = ""


def discover(url: str, authority: str, token: Token | None) -> Discovered:
    """By the stored authority, else by the token's digest, else by the machine's trust store."""
    if not url.startswith("https:"):
        return _plain(url)
    if not authority:
        return _by_token(url, token) if token else _first_use(url)
    try:
        return _known(url, authority)
    except UntrustedError as err:
        if token is None or with_digest(authority, [token.digest]):
            if "authority" not in str(err):
                raise
            raise UntrustedError(f"{err}; {_KNOWN.format(_digests(authority))}") from err
        return _by_token(url, token)  # the owner's newer word: this is another master


def _plain(url: str) -> Discovered:
    found = _read(get(url, DISCOVERY), url)
    for address in (found.grpc, found.join):
        if not is_loopback(split_address(address)[0]):
            raise DocumentError(f"{url}: {address} is not a loopback address, as the URL's is")
    return Discovered(found.grpc, found.join)


def _known(url: str, authority: str) -> Discovered:
    """What is trusted changes by registration alone, never by this document."""
    found = _read(get(url, DISCOVERY, authority), url)
    if not with_digest(found.authority, map(digest_of, certificates(authority))):
        raise UntrustedError(
            f"{url}: it names another authority, {_digests(found.authority)}, than the one that"
            f" this node has joined, {_digests(authority)}"
        )
    return replace(found, authority=authority)


def _by_token(url: str, token: Token) -> Discovered:
    """Unverified first, for the authority alone; what is used is the second copy, verified."""
    first = _read(get_unverified(url, DISCOVERY), url)
    matching = with_digest(first.authority, [token.digest])
    if not matching:
        raise UntrustedError(
            f"{url}: its authority is {_digests(first.authority)}, and the join token is for"
            f" {token.digest}: this is not the master that gave the token"
        )
    answer = get(url, DISCOVERY, matching[0])
    found = _read(answer, url)
    if not with_digest(found.authority, [token.digest]):
        raise UntrustedError(f"{url}: it names another authority when it is asked again")
    authority = found.authority if answer.by_authority else matching[0]
    return replace(found, authority=authority)


def _first_use(url: str) -> Discovered:
    try:
        found = _read(get(url, DISCOVERY), url)
    except UntrustedError as err:
        hint = "set MASTER_JOIN_TOKEN, or have the master's address certified publicly"
        raise UntrustedError(f"{err}; {hint}") from err
    if not found.authority:
        raise DocumentError(f"{url}{DISCOVERY} names no certificate_authority")
    return found


def _digests(authority: str) -> str:
    """A stranger may name any number of them."""
    known = [digest_of(one) for one in certificates(authority)]
    more = [f"{len(known) - MOST_SHOWN} more"] if len(known) > MOST_SHOWN else []
    return " and ".join(known[:MOST_SHOWN] + more) or "none"


def _read(answer: Answer, url: str) -> Discovered:
    try:
        document = json.loads(answer.body)
        grpc = document["grpc"]
        found = Discovered(
            grpc,
            document.get("join", grpc),
            "".join(certificates(document.get("certificate_authority", ""))),
            answer.ahead_s or 0.0,
            document.get("wireguard", {}).get("grpc", ""),
        )
        for address in filter(None, (found.grpc, found.join, found.inside)):
            split_address(address)
        _digests(found.authority)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise DocumentError(f"{url}{DISCOVERY} is not a discovery document: {err!r}") from err
    return found
