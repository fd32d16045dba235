"""Images that were made to get past the walls, on a real engine."""

from collections.abc import Iterator

import pytest

from tests.fakes.executor_alone import ExecutorAlone, task
from tests.fakes.hostile_image import make_image
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

ON_DISK = """
import os
own = ("/.hivemind", "/output", "/task", "/.keeper", "/etc/hostname", "/etc/hosts")
mounts = [line.split() for line in open("/proc/self/mountinfo")]
newest = {fields[4]: fields[fields.index("-") + 1] for fields in mounts}
for path, kind in newest.items():
    if kind not in ("tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay"):
        print(path, "is its own" if path in own else kind)
"""
OWN = {"/.hivemind", "/output", "/task", "/.keeper", "/etc/hostname", "/etc/hosts"}


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    assert engine.task_image
    alone = ExecutorAlone(engine.host).start()
    yield alone
    alone.stop()


@pytest.fixture
def name(executor: ExecutorAlone) -> Iterator[str]:
    yield "hivemind-test-hostile:1"
    executor.docker.remove_image("hivemind-test-hostile:1", force=True)


def test_no_volume_of_an_images_is_on_the_hosts_disk(executor: ExecutorAlone, name: str) -> None:
    volumes = ("/requirements", "/data/", "//data", "/output/", "/output/x/", "/.keeper", "/v/../w")
    image = make_image(executor.docker, name, Volumes={path: {} for path in volumes})
    key = executor.assign(task("python3", "-c", ON_DISK, name="volumes", image=image))
    report = executor.wait_report(key)
    assert (report.phase, report.error) == ("succeeded", "")
    lines = executor.output(key).decode().splitlines()
    assert {line.removesuffix(" is its own") for line in lines} <= OWN, lines


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        pytest.param(["BIG=" + "x" * 200_000], "environment['BIG']: 200004 bytes", id="large"),
        pytest.param(["=x"], "environment['']: no name of a variable", id="no name"),
    ],
)
def test_an_environment_that_can_not_be_given_ends_the_task_and_nothing_else(
    executor: ExecutorAlone, name: str, environment: list[str], said: str
) -> None:
    """Where it is made ready, and before that where its requirements are installed."""
    image = make_image(executor.docker, name, Env=["PATH=/usr/bin:/bin", *environment])
    before = executor.pid()
    for requirements in ((), ("tool",)):
        id_ = f"environment-{len(environment[0])}-{len(requirements)}"
        key = executor.assign(task("true", name=id_, image=image, requirements=requirements))
        report = executor.wait_report(key)
        assert (report.phase, report.exit_code) == ("failed", -1)
        assert said in report.error
    assert executor.pid() == before
