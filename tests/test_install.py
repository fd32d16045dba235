"""What install.sh does where something is missing, on machines made of a few links.

The good case is its own proof: `./install.sh test` ran this.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What every Debian has. None of what install.sh looks for is among it.
ESSENTIAL = (
    *("bash", "cat", "cut", "dirname", "echo", "env", "grep", "mktemp", "rm", "sed", "sh"),
    *("sha256sum", "sort", "tail", "tr", "xargs"),
)


class Machine:
    """A folder that is the whole PATH, with scripts in the place of what may change the system."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "bin"
        self._bin.mkdir()
        self._calls = folder / "calls"
        self._calls.touch()
        for name in ESSENTIAL:
            (self._bin / name).symlink_to(str(shutil.which(name)))
        self.has("id", "echo 0")
        self.has("python3", "exit 0")

    def has(self, name: str, script: str) -> None:
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def records(self, name: str, then: str = "exit 0") -> None:
        self.has(name, f'echo "{name} $*" >>{self._calls}\n{then}')

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # A copy without the line that adds the system's folders sees only this machine.
        script = (ROOT / "install.sh").read_text()
        assert "PATH=$PATH:/usr/sbin:/sbin\n" in script
        copy = self._bin.parent / "install.sh"
        copy.write_text(script.replace("PATH=$PATH:/usr/sbin:/sbin\n", ""))
        command = [str(shutil.which("bash")), str(copy), *arguments]
        return subprocess.run(
            command, env={"PATH": str(self._bin)}, capture_output=True, text=True, close_fds=True
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_is_missing_is_named_and_then_installed(machine: Machine) -> None:
    machine.records("apt-get")
    machine.has("apt-cache", '[ "$2" != docker-cli ]')  # as on Debian 12
    done = machine.run("demo", "--once")
    named = "installing with apt-get: curl docker.io gcc iproute2 iptables musl-tools nftables\n"
    assert named in done.stderr
    update, install = machine.calls
    assert update.endswith(" update")
    for package in ("curl", "docker.io", "gcc", "iproute2", "iptables", "musl-tools"):
        assert package in install.split()
    assert "docker-cli" not in install.split()


def test_what_apt_did_not_bring_is_named(machine: Machine) -> None:
    machine.records("apt-get")
    machine.has("apt-cache", "exit 0")
    done = machine.run("demo", "--once")
    assert done.returncode == 1
    assert "did not bring all that was expected" in done.stderr


def test_apts_own_words_are_shown_when_it_fails(machine: Machine) -> None:
    machine.records("apt-get", then='[ "$4" = update ] || { echo E: no space left; exit 100; }')
    machine.has("apt-cache", "exit 0")
    done = machine.run()
    assert done.returncode == 1
    assert "E: no space left" in done.stderr


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    machine.records("apt-get")
    machine.has("apt-cache", "exit 0")
    for name in ("dockerd", "docker", "iptables", "nft", "ip", "curl", "gcc"):
        machine.has(name, "exit 0")
    assert "installing with apt-get: musl-tools\n" in machine.run().stderr


def test_a_python_without_venv_gets_its_package(machine: Machine) -> None:
    # As on a bare Debian 12: the module that makes environments is a package of its own.
    say_package = "*ensurepip*) echo ensurepip:python3.11-venv ;;"
    machine.has("python3", f'case $2 in *"import ensurepip"*) exit 1 ;; {say_package} esac')
    machine.records("apt-get")
    machine.has("apt-cache", "exit 0")
    assert "python3.11-venv" in machine.run().stderr


@pytest.mark.parametrize(
    "sudo", [pytest.param(None, id="no sudo"), pytest.param("exit 1", id="sudo asks")]
)
def test_without_root_it_says_what_to_do(machine: Machine, sudo: str | None) -> None:
    machine.records("apt-get")
    machine.has("id", "echo 1000")
    if sudo:
        machine.has("sudo", sudo)
    done = machine.run("demo")
    assert done.returncode == 1
    assert "run 'apt-get install curl docker.io" in done.stderr
    assert machine.calls == []


def test_with_a_sudo_that_does_not_ask_it_goes_on(machine: Machine) -> None:
    machine.records("apt-get")
    machine.has("apt-cache", "exit 0")
    machine.has("id", "echo 1000")
    machine.has("sudo", 'shift; exec "$@"')
    machine.has("true", "exit 0")
    machine.run("demo")
    assert [call.split()[0] for call in machine.calls] == ["apt-get", "apt-get"]


def test_without_apt_it_says_so(machine: Machine) -> None:
    done = machine.run("demo")
    assert done.returncode == 1
    assert "there is no apt-get here" in done.stderr


def test_without_a_new_enough_python_it_says_so(machine: Machine) -> None:
    machine.has("python3", "exit 1")
    done = machine.run("demo")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "Python 3.11 or newer is missing" in done.stderr


@pytest.mark.parametrize("arguments", [("deom",), ("demo", "--twice")])
def test_a_mistyped_command_is_answered_with_the_usage(
    machine: Machine, arguments: tuple[str, ...]
) -> None:
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert "./install.sh demo [--once]" in done.stderr


def test_help_is_no_error(machine: Machine) -> None:
    done = machine.run("-h")
    assert (done.returncode, done.stderr) == (0, "")
