"""The disk that Docker keeps images on, where it is another than the home's."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor.engine import About
from procs.executor.image_disk import LOOK_EACH_S, Disk, ImageDisk, measure
from shared.settings import load
from tests.shared.polling import until

OTHER = Path("/dev/shm")  # a file system of its own on every Linux


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    if OTHER.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the tests' folder lies in /dev/shm")
    with tempfile.TemporaryDirectory(dir=OTHER, prefix="hm-") as folder:
        yield Path(folder)


def test_another_file_system_is_measured(tmp_path: Path, elsewhere: Path) -> None:
    found = os.statvfs(elsewhere)
    disk = measure(elsewhere, tmp_path)
    assert disk is not None
    assert disk.total_bytes == found.f_blocks * found.f_frsize
    assert disk.free_bytes == pytest.approx(found.f_bavail * found.f_frsize, rel=0.1)


def test_the_homes_own_and_one_that_is_not_here_are_not(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    assert measure(tmp_path / "docker", tmp_path) is None
    assert measure(tmp_path / "nowhere", tmp_path) is None


def test_used_is_what_is_not_free() -> None:
    assert Disk(25, 100).used_pct == 75.0


def image_disk(home: Path, docker_host: str = "unix:///d.sock") -> ImageDisk:
    environment = {
        "HIVEMIND_HOME": str(home), "DOCKER_HOST": docker_host, "ALERT_IMAGE_DISK": "0,0,0",
    }  # fmt: skip
    return ImageDisk(load(environment, home))


def test_its_alert_comes_and_goes(tmp_path: Path, elsewhere: Path) -> None:
    watched, now_s = image_disk(tmp_path), time.monotonic()
    watched.beat(None, now_s)
    there = About("20", ("runc",), str(elsewhere))

    def is_alert(about: About, at_s: float, wanted: bool) -> bool:
        watched.beat(about, at_s)
        return bool(watched.alerts) is wanted

    until(lambda: is_alert(there, now_s, True), "it is passed")
    assert watched.disk.total_bytes > 0
    assert [alert.rule for alert in watched.alerts] == ["image_disk"]
    moved = About("20", ("runc",), str(tmp_path))
    assert is_alert(moved, now_s + 1, True)
    assert not watched._jobs.is_busy("image_disk"), "not looked at again yet"
    until(lambda: is_alert(moved, now_s + LOOK_EACH_S, False), "it is the home's now")
    assert [alert.rule for alert in watched.cleared] == ["image_disk"]
    assert watched.disk == Disk()
    watched.close()


@pytest.mark.parametrize(
    ("docker_host", "data_root"),
    [
        pytest.param("tcp://127.0.0.1:2375", "/dev/shm", id="perhaps of another machine"),
        pytest.param("unix:///d.sock", "", id="not told"),
    ],
)
def test_what_is_not_known_to_be_here_is_not_looked_at(
    tmp_path: Path, docker_host: str, data_root: str
) -> None:
    watched = image_disk(tmp_path, docker_host)
    watched.beat(About("20", ("runc",), data_root), time.monotonic())
    assert not watched._jobs.is_busy("image_disk")
    watched.close()
