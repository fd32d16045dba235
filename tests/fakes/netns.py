"""A worker's own network: a namespace, and one wire from there to the machine, that can be hurt.

What is set stays within the namespace and its wire; names carry the pid, and all of it goes in
the end. Needs root, `ip`, `tc` and `iptables`.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MASTER, WORKER = "10.213.{}.1", "10.213.{}.2"


class Wire:
    """`name`: the namespace. `master`, `worker`: the addresses of the two ends."""

    def __init__(self) -> None:
        number = os.getpid() % 250 + 1
        self.name = f"hmd{os.getpid()}"
        self.master, self.worker = MASTER.format(number), WORKER.format(number)
        self._etc = Path("/etc/netns") / self.name

    def inside(self, *command: str) -> None:
        self._run("ip", "netns", "exec", self.name, *command)

    def enter(self) -> tuple[str, ...]:
        """Comes before a command that shall run there."""
        return ("ip", "netns", "exec", self.name)

    @staticmethod
    def _run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)

    # -------------------------------------------------------------- making

    def build(self) -> None:
        self._etc.mkdir(parents=True)
        self.resolve()
        (self._etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1\n")
        self._run("ip", "netns", "add", self.name)
        end = f"{self.name}m"
        self._run(
            *("ip", "link", "add", end, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.name),
        )
        self._run("ip", "addr", "add", f"{self.master}/30", "dev", end)
        self._run("ip", "link", "set", end, "up")
        self.inside("ip", "addr", "add", f"{self.worker}/30", "dev", "eth0")
        for name in ("lo", "eth0"):
            self.inside("ip", "link", "set", name, "up")

    def remove(self) -> None:
        for command in (
            ("ip", "link", "del", f"{self.name}m"),
            ("ip", "netns", "del", self.name),
        ):
            subprocess.run(command, capture_output=True, check=False)
        for path in self._etc.iterdir():
            path.unlink()
        self._etc.rmdir()

    # -------------------------------------------------------------- harm

    def resolve(self, *names: str) -> None:
        """There, these names mean the master's address, and no other is known."""
        lines = ["127.0.0.1 localhost", *(f"{self.master} {name}" for name in names)]
        (self._etc / "hosts").write_text("\n".join(lines) + "\n")

    def swallow(self) -> None:
        """Everything is lost without a word, both ways; connections stay half-open."""
        for chain in ("INPUT", "OUTPUT"):
            self.inside("iptables", "-A", chain, "-j", "DROP")

    def lose(self, share: float) -> None:
        """A part of the packets."""
        for chain in ("INPUT", "OUTPUT"):
            self.inside(
                *("iptables", "-A", chain, "-m", "statistic", "--mode", "random"),
                *("--probability", str(share), "-j", "DROP"),
            )

    def reset(self) -> None:
        """Every connection is refused, with a reset."""
        self.inside(
            *("iptables", "-A", "OUTPUT", "-p", "tcp", "-j", "REJECT"),
            *("--reject-with", "tcp-reset"),
        )

    def heal(self) -> None:
        self.inside("iptables", "-F")

    def limit(self, rate: str) -> None:
        """Of what the worker sends."""
        self.inside(
            *("tc", "qdisc", "add", "dev", "eth0", "root", "tbf"),
            *("rate", rate, "burst", "16k", "latency", "400ms"),
        )


@contextmanager
def wire() -> Iterator[Wire]:
    made = Wire()
    try:
        made.build()
        yield made
    finally:
        made.remove()
