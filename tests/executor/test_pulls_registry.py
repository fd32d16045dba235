"""Pulls from a real registry, over a wire that stalls, is cut, or answers in its place; and tasks
of the executor whose images lie there."""

import base64
import hashlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from procs.executor.engine import DockerEngine, NotThereError
from procs.executor.images import Images
from procs.executor.pulls import NO_PROGRESS_S, Pulled, Pulls
from shared.taskdir import InputSpec
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.fakes.registry import Registry
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

DEADLINE_S = 30.0
KIB = 1024
SHOW_MARK = """
#include <fcntl.h>
#include <unistd.h>
int main(void) {
  char mark[64];
  ssize_t size = read(open("/mark", O_RDONLY), mark, sizeof mark);
  return size > 0 && write(1, mark, size) == size ? 0 : 1;
}
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hmr-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def own_engine(folder: Path) -> Iterator[PrivateEngine]:
    """Its images are this module's alone."""
    made = PrivateEngine(folder / "e")
    try:
        made.start()
        yield made
    finally:
        made.stop("--purge")


@pytest.fixture(scope="module")
def the_registry(own_engine: PrivateEngine, folder: Path) -> Iterator[Registry]:
    made = Registry(own_engine, folder)
    yield made
    made.close()


@pytest.fixture
def registry(the_registry: Registry) -> Iterator[Registry]:
    yield the_registry
    the_registry.wire.mend()


@pytest.fixture(scope="module")
def program(folder: Path) -> bytes:
    """Prints which image it came in."""
    source, binary = folder / "run.c", folder / "run"
    source.write_text(SHOW_MARK)
    subprocess.run(["cc", "-static", "-Os", "-o", str(binary), str(source)], check=True)
    return binary.read_bytes()


@pytest.fixture
def pulls(own_engine: PrivateEngine, tmp_path: Path) -> Iterator[Pulls]:
    (tmp_path / "lib").mkdir()
    engine = DockerEngine(own_engine.host)
    made = Pulls(engine, Images(engine, tmp_path, "", 100), uniform=lambda: 0.0)
    yield made
    made.close()


@pytest.fixture
def executor(own_engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    made = ExecutorAlone(own_engine.host)
    try:
        yield made.start()
    finally:
        made.stop()


def noise(kib: int) -> dict[str, bytes]:
    """A layer that can't be compressed and was never seen before."""
    return {os.urandom(4).hex(): os.urandom(kib * KIB)}


def pull(pulls: Pulls, image: str, step_s: float = 0.0) -> tuple[Pulled, list[str]]:
    """How it ended, and what it showed; its clock makes a step at each look."""
    now_s, shown = 0.0, [""]
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        pulls.want({image}, now_s)
        if shown[-1] != pulls.progress(image):
            shown.append(pulls.progress(image))
        if select.select([pulls.fileno()], [], [], 0.01)[0]:
            for pulled in pulls.results(now_s):
                return pulled, shown
        now_s += step_s
    raise AssertionError(f"{image} did not end: {shown}")


def refused(pulled: Pulled) -> str:
    assert pulled.refused is not None
    return pulled.refused.text


def percents(shown: list[str]) -> list[int]:
    return [int(text.split()[1].rstrip("%")) for text in shown if "%" in text]


# ------------------------------------------------------------------ pulls


def test_by_tag_with_progress_and_its_digest(
    pulls: Pulls, registry: Registry, own_engine: PrivateEngine
) -> None:
    digest = registry.push("tag", "1", noise(6000), noise(3000))
    pulled, shown = pull(pulls, registry.name("tag:1"))
    assert pulled.refused is None
    assert len(percents(shown)) > 1, shown
    assert percents(shown) == sorted(percents(shown))
    assert percents(shown)[-1] <= 100
    image = DockerEngine(own_engine.host).image(registry.name("tag:1"))
    assert image.registry_digest == f"{registry.name('tag')}@{digest}"
    assert image.digest.startswith("sha256:")
    assert image.digest != digest


def test_by_digest_whatever_the_tag_beside_it(
    pulls: Pulls, registry: Registry, own_engine: PrivateEngine
) -> None:
    engine = DockerEngine(own_engine.host)
    old = registry.push("digest", "1", noise(50))
    new = registry.push("digest", "1", noise(50))
    assert pull(pulls, registry.name("digest:1"))[0].refused is None
    named = registry.name(f"digest:1@{old}")
    with pytest.raises(NotThereError):
        engine.image(named)
    assert pull(pulls, named)[0].refused is None
    assert engine.image(named).registry_digest == registry.name(f"digest@{old}")
    assert engine.image(registry.name("digest:1")).registry_digest == registry.name(f"digest@{new}")


@pytest.mark.parametrize("version", ["tag:none", "tag@sha256:" + "0" * 64, "never:1"])
def test_what_the_registry_has_not(pulls: Pulls, registry: Registry, version: str) -> None:
    pulled, _ = pull(pulls, registry.name(version))
    assert "could not be pulled: manifest for" in refused(pulled)
    assert "manifest unknown" in refused(pulled)


def test_a_registry_that_is_down(pulls: Pulls) -> None:
    pulled, shown = pull(pulls, "127.0.0.1:1/a", step_s=1.0)
    assert "could not be pulled: " in refused(pulled)
    assert "connection refused (3 tries); " in refused(pulled)
    assert any("to be pulled again: " in text for text in shown)


@pytest.mark.parametrize("code", [500, 503, 429])
def test_an_answer_that_passes(pulls: Pulls, registry: Registry, code: int) -> None:
    registry.push("blip", "1", noise(50))
    registry.wire.answer = f"HTTP/1.1 {code} No\r\nContent-Length: 0\r\n\r\n".encode()
    image = registry.name("blip:1")
    pulls.want({image}, 0.0)
    assert select.select([pulls.fileno()], [], [], DEADLINE_S)[0]
    assert list(pulls.results(0.0)) == []
    registry.wire.mend()
    assert pull(pulls, image, step_s=1.0)[0].refused is None
    registry.docker.remove_image(image)


def stalled(pulls: Pulls, registry: Registry, repository: str) -> str:
    """An image that stops coming in the middle of a layer."""
    registry.push(repository, "1", noise(3000))
    registry.wire.stall_after_bytes = 1000 * KIB
    image = registry.name(f"{repository}:1")
    pulls.want({image}, 0.0)
    assert registry.wire.stalled.wait(DEADLINE_S)
    return image


def has_ended_in_the_engine(pulls: Pulls, registry: Registry, image: str) -> None:
    """Else the next pull would join it, and wait for what never comes."""
    registry.wire.mend()
    assert pull(pulls, image)[0].refused is None


def test_a_registry_that_stops_sending(pulls: Pulls, registry: Registry) -> None:
    image = stalled(pulls, registry, "stall")
    deadline_s = time.monotonic() + DEADLINE_S
    while "%" not in pulls.progress(image):
        assert time.monotonic() < deadline_s
        pulls.want({image}, 1.0)
        assert not select.select([pulls.fileno()], [], [], 0.01)[0]
    pulled, _ = pull(pulls, image, step_s=NO_PROGRESS_S)  # the last bytes may still be heard
    assert f"image {image} could not be pulled: nothing moved for 120 s, at " in refused(pulled)
    has_ended_in_the_engine(pulls, registry, image)


def test_a_pull_that_nobody_wants_any_more_ends_in_the_middle(
    pulls: Pulls, registry: Registry
) -> None:
    image = stalled(pulls, registry, "unwanted")
    pulls.want(set(), 1.0)
    has_ended_in_the_engine(pulls, registry, image)


def test_a_wire_that_is_cut_is_gone_on_with(pulls: Pulls, registry: Registry) -> None:
    registry.push("cut", "1", noise(3000))
    registry.wire.cut_after_bytes = 1000 * KIB
    image = registry.name("cut:1")
    pulls.want({image}, 0.0)
    assert registry.wire.was_cut.wait(DEADLINE_S)
    registry.wire.mend()
    assert pull(pulls, image)[0].refused is None


def test_a_layer_that_is_not_what_it_should_be(
    pulls: Pulls, registry: Registry, folder: Path
) -> None:
    before = set((folder / "data").rglob("data"))
    registry.push("torn", "1", noise(400))
    (layer,) = (
        path
        for path in set((folder / "data").rglob("data")) - before
        if path.stat().st_size > 100 * KIB
    )
    with layer.open("r+b") as file:
        file.truncate(100 * KIB)
    pulled, _ = pull(pulls, registry.name("torn:1"))
    assert "could not be pulled: filesystem layer verification failed" in refused(pulled)


def test_a_login_of_the_workers_user_is_used(
    pulls: Pulls, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = base64.b64encode(b"worker:secret").decode()
    config = {"auths": {registry.name("").rstrip("/"): {"auth": login}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    challenge = 'WWW-Authenticate: Basic realm="r"\r\nContent-Length: 0\r\n\r\n'
    registry.wire.answer = f"HTTP/1.1 401 No\r\n{challenge}".encode()
    assert "could not be pulled" in refused(pull(pulls, registry.name("private:1"))[0])
    assert f"Authorization: Basic {login}".encode() in b"".join(registry.wire.asked)


@pytest.mark.filterwarnings("ignore:docker-credential-none-such")
def test_a_login_that_can_not_be_read_is_said(
    pulls: Pulls, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"credsStore": "none-such"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    said = refused(pull(pulls, registry.name("private:2"), step_s=1.0)[0])
    assert "could not be pulled: its registry's login can't be read: Credentials store" in said


# ------------------------------------------------------------------ tasks


def marked(mark: str, program: bytes) -> dict[str, bytes]:
    return {"run": program, "mark": f"{mark}\n".encode()}


def local_id(executor: ExecutorAlone, image: str) -> str:
    found: dict[str, Any] = executor.docker.inspect_image(image)  # type: ignore[no-untyped-call]
    return str(found["Id"])


def test_a_tag_that_moves_between_two_tasks(
    executor: ExecutorAlone, registry: Registry, program: bytes
) -> None:
    old = registry.push("moves", "1", marked("old", program))
    image = registry.name("moves:1")
    first = executor.assign(task(name="first", image=image))
    report = executor.wait_report(first)
    assert (report.phase, executor.output(first)) == ("succeeded", b"old\n")
    assert report.image_digest == registry.name(f"moves@{old}")
    assert report.pull_s > 0
    here = local_id(executor, image)

    name = registry.name("moves")
    new = registry.push("moves", "2", marked("new", program))
    registry.move("moves", "2", "1")
    second = executor.assign(task(name="second", image=image))
    exact = executor.assign(task(name="exact", image=f"{image}@{new}"))
    reports = [executor.wait_report(key) for key in (second, exact)]
    assert [executor.output(key) for key in (second, exact)] == [b"old\n", b"new\n"]
    assert [r.image_digest for r in reports] == [f"{name}@{old}", f"{name}@{new}"]
    assert local_id(executor, image) == here, "nor does a pull move it"


def test_two_tasks_one_pull_and_its_progress_in_the_state(
    executor: ExecutorAlone, registry: Registry, program: bytes, pulls: Pulls
) -> None:
    registry.push("shared", "1", marked("both", program), noise(3000))
    registry.wire.stall_after_bytes = 1000 * KIB
    image = registry.name("shared:1")
    keys = [executor.assign(task(name=f"shared-{n}", image=image)) for n in range(2)]

    def shown() -> list[str]:
        return [held.detail for key in keys if (held := executor.held(key))]

    executor.wait(lambda: all("pulling " in detail for detail in shown()) and shown(), "progress")
    assert len(shown()) == 2
    for key in keys:
        executor.cancel(key)
    reports = [executor.wait_report(key) for key in keys]
    assert [(r.phase, r.exit_code) for r in reports] == [("cancelled", -1)] * 2
    has_ended_in_the_engine(pulls, registry, image)


def test_killed_in_the_middle_of_a_pull(
    executor: ExecutorAlone, registry: Registry, own_engine: PrivateEngine, program: bytes
) -> None:
    """The executor, then the engine: it comes all the same, and the report knows from where."""
    digest = registry.push("killed", "1", marked("here", program), noise(3000))
    registry.wire.stall_after_bytes = 1000 * KIB
    image = registry.name("killed:1")
    key = executor.assign(task(name="killed", image=image))
    for kill, start in ((executor.kill, executor.pid), (own_engine.kill, own_engine.start)):
        executor.wait(registry.wire.stalled.is_set, "the middle of a layer")
        registry.wire.stalled.clear()
        kill()
        start()
    registry.wire.mend()
    report = executor.wait_report(key)
    assert (report.phase, executor.output(key)) == ("succeeded", b"here\n")
    assert report.image_digest == registry.name(f"killed@{digest}")


def test_an_image_that_is_nowhere_is_the_cause(
    executor: ExecutorAlone, registry: Registry
) -> None:
    report = executor.wait_report(executor.assign(task(name="no", image=registry.name("no:1"))))
    assert (report.phase, report.cause, report.exit_code) == ("failed", "image", -1)
    assert "manifest unknown" in report.error


def test_what_the_owner_allows_counts_when_it_starts_too(own_engine: PrivateEngine) -> None:
    """It was accepted before the owner changed the list, or by a process that was taken over."""
    executor = ExecutorAlone(own_engine.host, ALLOWED_IMAGES="python:3.12").start()
    try:
        report = executor.wait_report(executor.assign(task(name="late", image="python:3.13")))
        assert (report.phase, report.cause, report.exit_code) == ("failed", "image", -1)
        assert "'python:3.13' is not among this node's ALLOWED_IMAGES any more" in report.error
    finally:
        executor.stop()


# ------------------------------------------------------------------ cleaning up


def is_here(executor: ExecutorAlone, image: str) -> bool:
    try:
        return bool(local_id(executor, image))
    except docker.errors.ImageNotFound:
        return False


def test_pulled_images_go_when_the_disk_is_full_and_no_others(
    own_engine: PrivateEngine, registry: Registry, program: bytes
) -> None:
    names = ("unused", "moved", "default", "container", "named", "owners")
    images = {name: registry.name(f"clean-{name}:1") for name in names}
    for name in names:
        registry.push(f"clean-{name}", "1", marked(name, program))
    default, unused = images["default"], images["unused"]
    executor = ExecutorAlone(own_engine.host, IMAGE_DISK_PCT="1", TASK_IMAGE=default)
    record = executor.home / "lib" / "images.json"
    try:
        executor.docker.pull(images["owners"])
        pull_for(executor, own_engine, images.values())
        executor.docker.create_container(images["container"], name="of-the-owner")
        executor.docker.tag(images["named"], "owners-name", "1")
        left_over = local_id(executor, images["moved"])
        registry.push("clean-moved", "2", marked("moved since", program))
        registry.move("clean-moved", "2", "1")
        executor.docker.pull(images["moved"])  # by the owner: ours is left without a tag

        entries = json.loads(record.read_bytes())
        assert len(entries) == len(names) - 1, "the owner's own is not in it"
        old = {key: {**one, "used_unix_s": 1.0} for key, one in entries.items()}
        record.write_text(json.dumps(old))
        executor.start()
        executor.wait(lambda: not is_here(executor, unused), "the unused one gone")
        executor.wait(lambda: not is_here(executor, left_over), "the one without a tag gone")
        stays = [name for name in names if is_here(executor, images[name])]
        assert stays == ["moved", "default", "container", "named", "owners"]
        again = executor.assign(task(name="again", image=unused))
        assert executor.wait_report(again).phase == "succeeded"
        assert local_id(executor, unused) in json.loads(record.read_bytes())
        assert is_here(executor, unused), "it is young again"
    finally:
        executor.docker.remove_container("of-the-owner")
        executor.stop()


def pull_for(executor: ExecutorAlone, own_engine: PrivateEngine, names: Iterable[str]) -> None:
    """As the executor does."""
    (executor.home / "lib").mkdir()
    engine = DockerEngine(own_engine.host)
    pulls = Pulls(engine, Images(engine, executor.home, "", 100))
    for name in names:
        assert pull(pulls, name)[0].refused is None
    pulls.close()


def test_an_image_that_is_removed_before_its_task_starts_is_pulled_again(
    executor: ExecutorAlone, registry: Registry, program: bytes
) -> None:
    registry.push("removed", "1", marked("came twice", program))
    image, data = registry.name("removed:1"), b"late"
    inputs = (InputSpec(path="x", size_bytes=4, sha256=hashlib.sha256(data).hexdigest()),)
    key = executor.assign(task(name="removed", image=image, inputs=inputs))

    def waits_for_input() -> bool:
        held = executor.held(key)
        return held is not None and "input" in held.detail and is_here(executor, image)

    executor.wait(waits_for_input, "the image here, and an input missed")
    executor.docker.remove_image(image)
    blobs = executor.directory(key) / "blobs"
    (blobs / "0.part").write_bytes(data)
    (blobs / "0.part").rename(blobs / "0")
    assert executor.wait_report(key).phase == "succeeded"
    assert executor.output(key) == b"came twice\n"
