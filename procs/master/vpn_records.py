"""Who has which address and key in the VPN: each function is a part of the caller's transaction."""

from ipaddress import IPv4Address, IPv4Network

import sqlalchemy as sa

from procs.master.tables import NODES, VPN_PEERS


class KeyTaken(Exception):
    """The key is another node's: with it, that one would be cut off."""


def assign(
    connection: sa.Connection, node_id: str, public_key: str, network: IPv4Network
) -> str | None:
    """The node's address, its first and only one; None: the range is full. Its key is noted."""
    _free_key(connection, node_id, public_key)
    is_it = VPN_PEERS.c.node_id == node_id
    row = connection.execute(sa.select(VPN_PEERS).where(is_it)).mappings().first()
    address = row["address"] if row is not None else ""
    if not address or IPv4Address(address) not in network:
        free = _next_free(connection, network)
        if free is None:
            return None
        address = free
    values = {"address": address, "public_key": public_key}
    if row is None:
        connection.execute(VPN_PEERS.insert().values(node_id=node_id, **values))
    elif {**row, **values} != dict(row):
        connection.execute(VPN_PEERS.update().where(is_it).values(**values))
    return address


def seats(connection: sa.Connection) -> dict[str, tuple[str, str]]:
    """Node → its address and its public key, whatever became of it."""
    found = connection.execute(sa.select(VPN_PEERS)).mappings()
    return {row["node_id"]: (row["address"], row["public_key"]) for row in found}


def peers(connection: sa.Connection, network: IPv4Network) -> dict[str, str]:
    """Public key → address, of those that may be there."""
    query = (
        sa.select(VPN_PEERS.c.public_key, VPN_PEERS.c.address)
        .join(NODES, NODES.c.node_id == VPN_PEERS.c.node_id)
        .where(VPN_PEERS.c.public_key != "", sa.not_(NODES.c.revoked))
        .order_by(VPN_PEERS.c.node_id)
    )
    found = {str(row[0]): str(row[1]) for row in connection.execute(query)}
    return {key: one for key, one in found.items() if IPv4Address(one) in network}


def server_address(network: IPv4Network) -> str:
    """The master's own."""
    return str(network[1])


def _free_key(connection: sa.Connection, node_id: str, public_key: str) -> None:
    """A revoked node has lost its claim."""
    if not public_key:
        return
    query = (
        sa.select(VPN_PEERS.c.node_id, NODES.c.revoked)
        .join(NODES, NODES.c.node_id == VPN_PEERS.c.node_id)
        .where(VPN_PEERS.c.public_key == public_key, VPN_PEERS.c.node_id != node_id)
    )
    for holder, revoked in connection.execute(query):
        if not revoked:
            raise KeyTaken(f"wireguard_public_key: it is {holder}'s; make one of this node's own")
        connection.execute(
            VPN_PEERS.update().where(VPN_PEERS.c.node_id == holder).values(public_key="")
        )


def _next_free(connection: sa.Connection, network: IPv4Network) -> str | None:
    taken = set(connection.execute(sa.select(VPN_PEERS.c.address)).scalars())
    taken.add(server_address(network))
    return next((str(one) for one in network.hosts() if str(one) not in taken), None)
