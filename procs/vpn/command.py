"""Runs the commands of the kernel's networking: ip, nft, wg. Blocks: never in the loop.

What a command says on failure is shown to the owner, without anything that looks like a key.
"""

import os
import re
import shutil
import subprocess

COMMAND_S = 10.0  # a call takes milliseconds; past this the machine is sick
PLACES = ":/usr/sbin:/sbin"  # where Debian keeps them, and a user's PATH has not
PACKAGES = {
    "nft": "nftables",
    "ip": "iproute2",
    "wg": "wireguard-tools",
    "wireguard-go": "wireguard-go",
}
ALIKE_KEY = re.compile(r"[A-Za-z0-9+/]{32,}=*")


class CommandError(Exception):
    """A command is missing, not permitted, or refuses; the text says which, and what to do."""


def find(name: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + PLACES)
    if path is None:
        raise CommandError(f"the command {name} is missing: install the package {PACKAGES[name]}")
    return path


def run(name: str, *arguments: str, text: str = "") -> str:
    """What it prints; `text` is its input, which nobody else sees."""
    path = find(name)
    try:
        done = subprocess.run(
            (path, *arguments),
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            env={"LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise CommandError(f"{name} could not be run: {type(err).__name__}") from err
    if done.returncode:
        raise CommandError(_why(name, done.stderr))
    return done.stdout


def _why(name: str, said: str) -> str:
    words = ALIKE_KEY.sub("…", " ".join(said.split())[:300])
    if "Operation not permitted" in words:
        return f"{name} is not permitted: run the worker as root, or give vpn CAP_NET_ADMIN"
    return f"{name} refuses: {words}"
