"""The lock files satisfy pyproject.toml, and name neither a registry nor this machine."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
RUN, DEV = ".requirements.lock", ".requirements-dev.lock"


def _locked(name: str) -> dict[str, str]:
    """Versions by canonical name, of what this platform gets."""
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        pin = re.match(r"(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)( ; (?P<marker>[^\\]+))?", line)
        if pin and (pin["marker"] is None or Marker(pin["marker"]).evaluate()):
            found[canonicalize_name(pin["name"])] = pin["version"]
    return found


def _wanted(name: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = project["project"]["dependencies"] + project["build-system"]["requires"]
    if name == DEV:
        texts += project["project"]["optional-dependencies"]["dev"]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("name", [RUN, DEV])
def test_every_dependency_is_locked_at_a_version_that_it_allows(name: str) -> None:
    locked = _locked(name)
    for requirement in _wanted(name):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not locked: ./install.sh lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


def test_the_worker_runs_on_what_was_tested() -> None:
    assert _locked(RUN).items() <= _locked(DEV).items()


@pytest.mark.parametrize("name", [RUN, DEV])
def test_every_locked_package_has_a_hash(name: str) -> None:
    entries = re.split(r"\n(?=[\w])", (ROOT / name).read_text())
    pins = [entry for entry in entries if "==" in entry.split("\n")[0]]
    assert pins
    assert [pin for pin in pins if "--hash=sha256:" not in pin] == []


@pytest.mark.parametrize("name", [RUN, DEV])
def test_no_registry_is_named(name: str) -> None:
    assert not re.search(r"://|--index|--find-links", (ROOT / name).read_text())
