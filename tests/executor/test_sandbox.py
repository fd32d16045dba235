"""The walls, line by line: what is given to Docker for any task."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from procs.executor.quota import Grant
from procs.executor.sandbox import Image, Place, argv, container, container_name, environment
from shared.taskdir import GIB, TaskKey

PLACE = Place(
    TaskKey("a-b", 2), Path("/h/tasks/a-b.2"), Path("/h"), "node-1", Path("/h/lib/keeper")
)
IMAGE = Image(
    "sha256:1", ("/run.sh",), ("serve",), ("PATH=/bin", "A=image"), ("/data", "/output"), "SIGINT"
)
GRANT = Grant(0.5, GIB, GIB, 64)
BODY = container(PLACE, IMAGE, GRANT, "runc")
HOST = BODY["HostConfig"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CapDrop", ["ALL"]),
        ("SecurityOpt", ["no-new-privileges:true"]),
        ("Privileged", False),
        ("ReadonlyRootfs", True),
        ("NetworkMode", "none"),
        ("IpcMode", "private"),
        ("Memory", GIB),
        ("MemorySwap", GIB),
        ("CpuPeriod", 100_000),
        ("CpuQuota", 50_000),
        ("PidsLimit", 65),
        ("LogConfig", {"Type": "none"}),
        ("RestartPolicy", {"Name": "no"}),
        ("AutoRemove", False),
        ("Runtime", "runc"),
    ],
)
def test_host_configuration(name: str, value: object) -> None:
    assert HOST[name] == value


def test_a_network_is_the_bridge_that_was_given_and_its_resolvers() -> None:
    granted = Grant(0.5, GIB, GIB, 64, network="hm-eg12345600")
    body = container(PLACE, IMAGE, granted, "runc", ("10.0.0.53",))
    host = body["HostConfig"]
    assert (host["NetworkMode"], body["NetworkDisabled"]) == ("hm-eg12345600", False)
    assert (host["Dns"], host["DnsSearch"], host["ExtraHosts"]) == (["10.0.0.53"], ["."], [])
    assert set(host["Sysctls"].values()) == {"1"}
    mount = next(m for m in host["Mounts"] if m["Target"] == "/etc/resolv.conf")
    assert (mount["Source"], mount["ReadOnly"]) == ("/h/run/resolv-10.0.0.53.conf", True)
    assert BODY["NetworkDisabled"] is True
    assert not {"Dns", "Sysctls", "ExtraHosts"} & set(HOST)


@pytest.mark.parametrize(
    ("volume", "paths"),
    [
        pytest.param("/data/", ["/data"], id="slash at its end"),
        pytest.param("//a/../data", ["/data"], id="another way to it"),
        pytest.param("data", ["/data"], id="relative"),
        pytest.param("/output/", [], id="the output"),
        pytest.param("/output/x", ["/output/x"], id="below the output"),
        pytest.param("/.hivemind/", [], id="the claim"),
        pytest.param("/.keeper", [], id="the keeper"),
        pytest.param("/requirements", ["/requirements"], id="no requirements"),
        pytest.param("/tmp/", [], id="there anyway"),
    ],
)
def test_a_volume_of_the_images_is_in_memory_or_a_place_of_ours(
    volume: str, paths: list[str]
) -> None:
    """Docker would put it on the host's disk, without a limit."""
    image = Image("sha256:1", volumes=(volume,))
    host = container(PLACE, image, Grant(0.5, GIB, GIB, 64), "runc")["HostConfig"]
    assert list(host["Tmpfs"]) == ["/tmp", *paths]


def test_the_requirements_are_no_volume_of_the_images() -> None:
    image = Image("sha256:1", volumes=("/requirements",))
    host = container(PLACE, image, Grant(0.5, GIB, GIB, 64, layer="l"), "runc")["HostConfig"]
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert [m["Target"] for m in host["Mounts"]].count("/requirements") == 1


def test_nothing_else_of_the_host_is_given() -> None:
    assert not {"Binds", "Devices", "CapAdd", "VolumesFrom", "PidMode"} & set(HOST)
    assert HOST["DeviceRequests"] == []
    assert {m["Target"]: (m["Source"], m["ReadOnly"]) for m in HOST["Mounts"]} == {
        "/.hivemind": ("/h/tasks/a-b.2/claim", False),
        "/output": ("/h/tasks/a-b.2/output", False),
        "/task": ("/h/tasks/a-b.2/input", True),
        "/.keeper": ("/h/lib/keeper", True),
    }


def test_no_core_dump_and_no_endless_files() -> None:
    assert {u["Name"]: u["Hard"] for u in HOST["Ulimits"]} == {"core": 1, "nofile": 4096}


def test_it_never_runs_as_root_and_shows_no_command_or_environment() -> None:
    assert BODY["User"] == "65534:65534"
    assert (BODY["Entrypoint"], BODY["Cmd"]) == (["/.keeper"], ["/.hivemind"])
    given = [line for line in BODY["Env"] if "=" in line]
    assert all(line.startswith("NVIDIA_") for line in given), "see gpus.py"


def test_it_is_killed_before_the_worker() -> None:
    assert HOST["OomScoreAdj"] > 0


def test_tmp_and_the_images_volumes_are_sized_memory() -> None:
    assert set(HOST["Tmpfs"]) == {"/tmp", "/data"}
    assert f"size={GIB // 2}" in HOST["Tmpfs"]["/tmp"]


def test_nothing_of_the_images_environment_reaches_the_runtime_and_its_hooks() -> None:
    bare = container(PLACE, replace(IMAGE, environment=()), GRANT, "runc")["Env"]
    hostile = ("LD_PRELOAD=/proc/self/cwd/x.so", "A=b=c", "A=d", "NVIDIA_VISIBLE_DEVICES=all")
    env = container(PLACE, replace(IMAGE, environment=hostile), GRANT, "runc")["Env"]
    assert env == [*bare, "LD_PRELOAD", "A"]  # without a value: taken away


def test_it_can_be_found_again() -> None:
    assert re.fullmatch("hivemind-a-b-2-[0-9]{6}", container_name(PLACE.key, PLACE.home))
    assert container_name(PLACE.key, PLACE.home) != container_name(PLACE.key, Path("/other"))
    assert BODY["Labels"] == {
        "hivemind.task": "a-b",
        "hivemind.attempt": "2",
        "hivemind.node": "node-1",
        "hivemind.home": "/h",
    }


def test_the_image_is_pinned_and_keeps_its_stop_signal() -> None:
    assert (BODY["Image"], BODY["StopSignal"]) == ("sha256:1", "SIGINT")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param(("x", "y"), ("/run.sh", "x", "y"), id="replaces the image's command"),
        pytest.param((), ("/run.sh", "serve"), id="the image's own"),
    ],
)
def test_argv(command: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert argv(IMAGE, command) == expected


def test_environment_is_the_images_then_the_tasks_and_nothing_else() -> None:
    found = environment(IMAGE, {"A": "task"}, {"S": "secret"})
    assert found == {"PATH": "/bin", "A": "task", "S": "secret"}
