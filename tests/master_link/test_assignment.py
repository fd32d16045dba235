"""Every field of an assignment is checked, and the refusal names it."""

import hashlib
from collections.abc import Callable

import pytest

from procs.master_link.assignment import Malformed, digest, read
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import DEFAULT_STOP_GRACE_S, DEFAULT_TIMEOUT_S, GIB, MIB
from tests.master_link.rig import request, task_input

SHA = hashlib.sha256(b"abc").digest()
Change = Callable[[pb.TaskAssignmentRequest], object]


def test_what_is_not_said_has_its_default() -> None:
    spec = read(request(), "image:default", 5.0)
    assert spec.image == "image:default"
    assert (spec.timeout_s, spec.stop_grace_s) == (DEFAULT_TIMEOUT_S, DEFAULT_STOP_GRACE_S)
    assert (spec.output_limit_bytes, spec.log_limit_bytes) == (GIB, 64 * MIB)
    assert (spec.egress, spec.accepted_unix_s) == (False, 5.0)


def test_what_is_said_is_taken_over() -> None:
    asked = request(
        image="debian:12",
        command=["sh", "-c", "true"],
        environment={"A": "1"},
        secrets={"B": "2"},
        resources=pb.Resources(cpus=1.5, memory_bytes=7, gpus=1, disk_bytes=8, processes=9),
        network=pb.NETWORK_POLICY_EGRESS,
        inputs=[task_input("a/b", b"abc"), task_input("c", b"xy", inline=True)],
        requirements=["numpy>=2"],
        output_globs=["*.txt", "d/"],
        priority=-3,
    )
    asked.timeout.FromMilliseconds(1500)
    spec = read(asked, "-", 0.0)
    assert (spec.image, spec.command, spec.environment) == (
        "debian:12", ("sh", "-c", "true"), {"A": "1"},
    )  # fmt: skip
    assert spec.secret_names == ("B",)
    assert (spec.cpus, spec.memory_bytes, spec.gpus, spec.processes) == (1.5, 7, 1, 9)
    assert (spec.egress, spec.timeout_s, spec.priority) == (True, 1.5, -3)
    assert [item.inline for item in spec.inputs] == [False, True]
    assert spec.inputs[0].sha256 == SHA.hex()


def _input(**change: object) -> Change:
    def apply(asked: pb.TaskAssignmentRequest) -> None:
        fields = {"path": "a", "size_bytes": 3, "sha256": SHA, **change}
        asked.inputs.append(pb.TaskInput(**fields))  # type: ignore[arg-type]

    return apply


def _paths(*paths: str) -> Change:
    return lambda asked: asked.inputs.extend(task_input(path, b"abc") for path in paths)


MALFORMED = [
    pytest.param("task_id", lambda a: setattr(a, "task_id", "a/b"), id="slash in the name"),
    pytest.param("task_id", lambda a: setattr(a, "task_id", ".."), id="only dots"),
    pytest.param("task_id", lambda a: setattr(a, "task_id", ""), id="no name"),
    pytest.param("task_id", lambda a: setattr(a, "task_id", "x" * 65), id="long name"),
    pytest.param("attempt", lambda a: setattr(a, "attempt", 0), id="attempt 0"),
    pytest.param("image", lambda a: setattr(a, "image", "--privileged"), id="image an option"),
    pytest.param("image", lambda a: setattr(a, "image", "a b"), id="image with a space"),
    pytest.param("image", lambda a: setattr(a, "image", "Debian:12"), id="image in upper case"),
    pytest.param("image", lambda a: setattr(a, "image", "a:b:c"), id="image with two tags"),
    pytest.param("image", lambda a: setattr(a, "image", "a@sha256:12"), id="image's digest short"),
    pytest.param("image", lambda a: setattr(a, "image", "a" * 256), id="image over-long"),
    pytest.param("image", lambda a: setattr(a, "image", "a/" * 9999 + "a"), id="image huge"),
    pytest.param("command[1]", lambda a: a.command.extend(["x", "a\0"]), id="NUL"),
    pytest.param("command[0]", lambda a: a.command.append("x" * 2**17), id="128 KiB"),
    pytest.param("command", lambda a: a.command.extend(["x" * 10**5] * 21), id="2 MB in all"),
    pytest.param("environment", lambda a: a.environment.update({"": "x"}), id="no variable"),
    pytest.param("environment", lambda a: a.environment.update({"A=B": "x"}), id="a sign in it"),
    pytest.param("environment", lambda a: a.environment.update({"A": "x\0"}), id="NUL in it"),
    pytest.param(
        "secrets", lambda a: (a.environment.update({"A": ""}), a.secrets.update({"A": ""})),
        id="secret and variable",
    ),
    pytest.param("secrets['A=B']", lambda a: a.secrets.update({"A=B": ""}), id="sign in a secret"),
    pytest.param("secrets['A']", lambda a: a.secrets.update({"A": "x\0"}), id="NUL in a secret"),
    pytest.param(
        "labels", lambda a: a.labels.update({str(n): "" for n in range(10_001)}), id="labels"
    ),
    pytest.param("requirements", lambda a: a.requirements.extend(["a"] * 10_001), id="many lines"),
    pytest.param("requirements", lambda a: a.requirements.extend(["a" * 1000] * 101), id="long"),
    pytest.param("output_globs", lambda a: a.output_globs.extend(["a"] * 10_001), id="many globs"),
    pytest.param("command", lambda a: a.command.extend([""] * 300_000), id="many arguments"),
    pytest.param("inputs[0].path", _paths("/".join(["x" * 200] * 19)), id="long path in all"),
    pytest.param("inputs[2].path", _paths("a", "a-b", "a/b"), id="in a file, with one between"),
    pytest.param(
        "resources.cpus", lambda a: setattr(a.resources, "cpus", float("nan")), id="NaN"
    ),
    pytest.param("resources.cpus", lambda a: setattr(a.resources, "cpus", -1.0), id="negative"),
    pytest.param(
        "resources.cpus", lambda a: setattr(a.resources, "cpus", float("inf")), id="infinite"
    ),
    pytest.param(
        "resources.memory_bytes", lambda a: setattr(a.resources, "memory_bytes", 2**63), id="2^63"
    ),
    pytest.param("timeout", lambda a: a.timeout.FromSeconds(0), id="timeout 0"),
    pytest.param("timeout", lambda a: a.timeout.FromSeconds(-1), id="timeout negative"),
    pytest.param("stop_grace", lambda a: a.stop_grace.FromSeconds(-1), id="grace negative"),
    pytest.param("inputs[0].path", _paths("/etc/passwd"), id="absolute"),
    pytest.param("inputs[0].path", _paths("a/../../b"), id="dots"),
    pytest.param("inputs[0].path", _paths("a//b"), id="empty part"),
    pytest.param("inputs[0].path", _paths(""), id="empty path"),
    pytest.param("inputs[0].path", _paths("a\0b"), id="NUL in a path"),
    pytest.param("inputs[0].path", _paths("x" * 256), id="long file name"),
    pytest.param("inputs[1].path", _paths("a", "a"), id="twice"),
    pytest.param("inputs[1].path", _paths("a", "a/b"), id="in a file"),
    pytest.param("inputs[0].path", _paths("a/b/c", "a"), id="in a file that comes later"),
    pytest.param("inputs[0].sha256", _input(sha256=b"short"), id="short digest"),
    pytest.param("inputs[0].size_bytes", _input(inline=b"ab"), id="inline of another size"),
    pytest.param("inputs[0].sha256", _input(inline=b"abd"), id="inline of another digest"),
    pytest.param("inputs[0].sha256", _input(size_bytes=0), id="empty with a digest"),
    pytest.param(
        "inputs[0].inline", _input(inline=b"x" * (MIB + 1), size_bytes=MIB + 1), id="large inline"
    ),
    pytest.param("requirements[0]", lambda a: a.requirements.append("a\nb"), id="two lines"),
    pytest.param("requirements[1]", lambda a: a.requirements.extend(["a", "-i x"]), id="option"),
    pytest.param("output_globs[0]", lambda a: a.output_globs.append("../*"), id="glob outside"),
    pytest.param(
        "output_limit_bytes", lambda a: setattr(a, "output_limit_bytes", 2**63), id="limit"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("field", "change"), MALFORMED)
def test_what_is_malformed_is_refused_by_its_field(field: str, change: Change) -> None:
    asked = request()
    change(asked)
    with pytest.raises(Malformed) as caught:
        read(asked, "image", 0.0)
    assert str(caught.value).startswith(field)


def test_files_beside_and_inside_an_unpacked_archive_are_possible() -> None:
    asked = request()
    _input(path="a", unpack=True)(asked)
    _paths("a/b", "ab")(asked)
    assert len(read(asked, "image", 0.0).inputs) == 3


@pytest.mark.parametrize(
    "image",
    ["debian", "debian:12", "localhost:5000/a/b_c__d:T-1.x", "Host.example/a@sha256:" + "0" * 64,
     "a--b/c.d"],
)  # fmt: skip
def test_images_that_docker_takes(image: str) -> None:
    assert read(request(image=image), "-", 0.0).image == image


def test_figures_are_what_the_kernel_can_give() -> None:
    asked = request(resources=pb.Resources(cpus=1e-320, processes=2**32 - 1))
    spec = read(asked, "-", 0.0)
    assert (spec.cpus, spec.processes) == (0.01, 2**22 - 1)
    assert read(request(), "-", 0.0).cpus == 0.0


def test_paths_that_are_deep_and_many_are_possible() -> None:
    """Its folders are compared with files only, not each with each."""
    deep = "/".join("d" * 1500)
    asked = request()
    _paths(*(f"{deep}/{number}" for number in range(2000)))(asked)
    assert len(read(asked, "-", 0.0).inputs) == 2000


def test_the_digest_is_of_everything_but_the_secrets_values() -> None:
    plain = digest(request(command=["a"], secrets={"S": "1"}))
    assert digest(request(command=["a"], secrets={"S": "2"})) == plain
    assert digest(request(command=["a"], secrets={"T": "1"})) != plain
    assert digest(request(command=["b"], secrets={"S": "1"})) != plain
