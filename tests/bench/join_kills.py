"""SIGKILLs master_link at each step of joining, one after the other: where it opens, writes, syncs
and renames each file of its identity, the child that makes the key included.

python -m tests.bench.join_kills: 21 steps, two minutes; some are a test
(tests/master_link/test_join_kills.py). strace does the killing. Whatever the step, the next life
joins by the same token, which is good for one node only, and is that node. Then the same for a
renewal, while the master changes its authority: 11 steps; the next life has no token.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.certificates import DAY_S, of_master, party
from tests.master_link.rig import short_home, told_hardware
from tests.master_link.tls_rig import TlsMaster, tls_master

WRITTEN = ("node.key", "node.id", "node.crt.new", "master-ca.crt")  # aside, then renamed
CALLS = ("openat", "fchmod", "write", "fsync", "rename")
STEPS = [(call, f".{name}.new") for name in WRITTEN for call in CALLS]
STEPS.append(("rename", "node.crt.new"))
RENEWED = ("node.crt.new", "master-ca.crt")
RENEWAL_STEPS = [(call, f".{name}.new") for name in RENEWED for call in CALLS]
RENEWAL_STEPS.append(("rename", "node.crt.new"))
ROOT = Path(__file__).parents[2]
LONGEST_S = 60.0


@dataclass
class Sweep:
    """Kills one node's first lives; what it finds is in `faults`."""

    master: TlsMaster
    points: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def at(self, call: str, name: str) -> None:
        """A new node is killed there; its second life must join as the same node."""
        with short_home() as home:
            async with told_hardware(home):
                await self._at(home, call, name)

    async def _at(self, home: Path, call: str, name: str) -> None:
        before, token = await self._nodes(), await self.master.token()
        point = await self._first_life(home, token, call, name)
        key = _content(home / "lib" / "node.key")
        async with _life(home, self.master.url, token, ()) as second:
            await self._joined(home, second)
        new = await self._nodes() - before
        own = _content(home / "lib" / "node.id").decode().strip()
        if not point:
            self.faults.append(f"{call} {name}: it was not killed there")
        if new != {own}:
            self.faults.append(f"{call} {name}: {new} at the master, {own!r} here")
        if key and key != _content(home / "lib" / "node.key"):
            self.faults.append(f"{call} {name}: the key is another one")
        self.points.append(point)

    async def renewing_at(self, call: str, name: str) -> None:
        """A node whose certificate is due is killed there while it renews it; its next life has no
        token, and renews it as the same node."""
        with short_home() as home:
            async with told_hardware(home):
                await self._renewing_at(home, call, name)

    async def _renewing_at(self, home: Path, call: str, name: str) -> None:
        lib, where = home / "lib", f"renewal, {call} {name}"
        async with _life(home, self.master.url, await self.master.token(), ()) as before:
            await self._joined(home, before)
        nodes, key = await self._nodes(), _content(lib / "node.key")
        own = _content(lib / "node.id").decode().strip()
        old = party(of_master(self.master.data), own, age_s=21 * DAY_S, key=key).certificate
        (lib / "node.crt").write_bytes(old)
        (lib / "master-ca.crt").write_text(of_master(self.master.data).pem)  # of before the change
        await self.master.order("/api/v1/authority/rotate")
        point = await self._first_life(home, "", call, name, old)
        if not point:
            self.faults.append(f"{where}: it was not killed there")
        async with _life(home, self.master.url, "", ()) as second:
            await self._joined(home, second, old)
        if _content(lib / "node.crt") == old:
            self.faults.append(f"{where}: the certificate is not renewed")
        if await self._nodes() != nodes or key != _content(lib / "node.key"):
            self.faults.append(f"{where}: it is another node")
        self.points.append(point)

    async def _first_life(
        self, home: Path, token: str, call: str, name: str, old: bytes = b""
    ) -> str:
        """Where it was killed; empty: it has joined before."""
        trace = home / "supervisord.trace"  # by its name the parent passes for a supervisord
        launcher = (
            *("strace", "-fqq", "-o", str(trace), "-P", str(home / "lib" / name)),
            *("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL"),
        )
        async with _life(home, self.master.url, token, launcher) as first:
            joining = asyncio.create_task(self._joined(home, first, old))
            dying = asyncio.create_task(self._killed(trace, first))
            await asyncio.wait((joining, dying), return_when=asyncio.FIRST_COMPLETED)
            joining.cancel()
            dying.cancel()
            await asyncio.gather(joining, dying, return_exceptions=True)
        lines = [line for line in _content(trace).decode().splitlines() if f"{call}(" in line]
        return lines[0].split(maxsplit=1)[1] if lines else ""

    async def _killed(self, trace: Path, life: asyncio.subprocess.Process) -> None:
        """Or the child that makes its key: then all of it is."""
        while life.returncode is None and b"killed by SIGKILL" not in _content(trace):
            await asyncio.sleep(0.02)

    async def _joined(
        self, home: Path, life: asyncio.subprocess.Process, old: bytes = b""
    ) -> None:
        """It has a certificate, another than `old`, and the master has heard it."""
        async with asyncio.timeout(LONGEST_S):
            while life.returncode is None:
                node_id = _content(home / "lib" / "node.id").decode().strip()
                for node in await self.master.nodes():
                    heard = node["node_id"] == node_id and node["state"] != "unspecified"
                    if heard and _content(home / "lib" / "node.crt") != old:
                        return
                await asyncio.sleep(0.1)

    async def _nodes(self) -> set[str]:
        return {node["node_id"] for node in await self.master.nodes()}


@contextlib.asynccontextmanager
async def _life(
    home: Path, url: str, token: str, launcher: tuple[str, ...]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """One life of master_link; killed at its end."""
    parent = launcher or ("sh", "-c", '"$@" & wait', "supervisord")  # by its name, as above
    process = await asyncio.create_subprocess_exec(
        *(*parent, sys.executable, "-m", "procs.master_link"),
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HIVEMIND_HOME": str(home),
            "MASTER_NODE_URL": url,
            "MASTER_JOIN_TOKEN": token,
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, 9)
        await process.wait()


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


@contextlib.asynccontextmanager
async def swept(data: Path) -> AsyncIterator[Sweep]:
    async with tls_master(data) as master:
        yield Sweep(master)


async def _sweep() -> Sweep:
    with tempfile.TemporaryDirectory() as folder:
        async with swept(Path(folder) / "master") as sweep:
            for call, name in STEPS:
                await sweep.at(call, name)
            for call, name in RENEWAL_STEPS:
                await sweep.renewing_at(call, name)
            return sweep


def main() -> int:
    sweep = asyncio.run(_sweep())
    print(f"killed at {len(sweep.points)} steps", *sweep.points, sep="\n  ")
    print(*sweep.faults or ["no fault"], sep="\n")
    return 1 if sweep.faults else 0


if __name__ == "__main__":
    sys.exit(main())
