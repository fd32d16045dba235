"""The container of an installation as Docker is asked for it, and what pip's words mean."""

from pathlib import Path

import pytest

from procs.executor.install_box import (
    PipSettings,
    body,
    overdue,
    pip_folder,
    progress,
    python_floor,
    start,
    why,
)
from procs.executor.networks import Taken
from procs.executor.quota import DEFAULT_PROCESSES, Grant
from procs.executor.run_record import Ended, RunRecord, Started
from procs.executor.sandbox import REQUIREMENTS_AT, Image, Place, container, with_requirements
from shared.taskdir import TaskKey

GRANT = Grant(0.5, 64_000_000, 1_000_000, 32)
IMAGE = Image("sha256:1", environment=("PATH=/x", "PIP_INDEX_URL=https://theirs", "A=1"))
PLACE = Place(TaskKey("layer", 1), Path("/home/layers/.new-1"), Path("/home"), "n", Path("/k"))
SETTINGS = PipSettings(
    "https://me:pa%21ss@index/simple", ("http://extra:81/simple",), None, "http://u:prox7@proxy"
)
STARTED = Started(1, 1, "")


def ended(code: int, oom_kills: int = 0) -> RunRecord:
    signal = 9 if code == 137 else 0
    return RunRecord(STARTED, None, Ended(2, 2, code, signal, None, None, None, oom_kills, 0, 0))


def test_its_walls_are_a_tasks_own() -> None:
    network = Taken("hm-egi01", ("9.9.9.9",))
    asked = body(PLACE, IMAGE, GRANT, "runc", "abc", network)
    task = container(PLACE, IMAGE, GRANT, "runc")
    host, walls = asked["HostConfig"], task["HostConfig"]
    assert (host["NetworkMode"], host["Dns"], asked["NetworkDisabled"]) == (
        "hm-egi01", ["9.9.9.9"], False,
    )  # fmt: skip
    *mounts, resolvers, pip = host["Mounts"]
    assert mounts == walls["Mounts"]
    assert (resolvers["Target"], resolvers["ReadOnly"]) == ("/etc/resolv.conf", True)
    assert (pip["Source"], pip["ReadOnly"]) == (str(pip_folder()), True)
    assert host["PidsLimit"] == DEFAULT_PROCESSES + 1, "others use the layer too"
    same = walls.keys() - {"NetworkMode", "Mounts", "PidsLimit"}
    assert {name: host[name] for name in same} == {name: walls[name] for name in same}
    assert {k: asked[k] for k in ("User", "Image", "Entrypoint", "Env", "Cmd")} == {
        k: task[k] for k in ("User", "Image", "Entrypoint", "Env", "Cmd")
    }


def test_docker_takes_it_for_no_attempts_container() -> None:
    labels = body(PLACE, IMAGE, GRANT, "runc", "abc", Taken("n", ()))["Labels"]
    assert labels == {"hivemind.home": "/home", "hivemind.layer": "abc", "hivemind.task": ""}


def test_the_index_is_the_owners_whatever_the_image_says() -> None:
    given = start(IMAGE, SETTINGS, GRANT, with_cert=True).environment
    assert given["PIP_INDEX_URL"] == "https://me:pa%21ss@index/simple"
    assert given["PIP_EXTRA_INDEX_URL"] == "http://extra:81/simple"
    assert given["PIP_TRUSTED_HOST"] == "extra:81"
    assert given["PIP_PROXY"] == "http://u:prox7@proxy"
    assert given["PIP_CERT"] == "/task/ca.pem"
    assert given["PIP_CONFIG_FILE"] == "/dev/null"
    assert (given["A"], given["PATH"]) == ("1", "/x")
    bare = start(IMAGE, PipSettings(), GRANT, with_cert=False).environment
    assert [name for name in bare if name.startswith("PIP_")] == ["PIP_CONFIG_FILE"]


def test_passwords_are_in_no_word_of_it() -> None:
    assert "pa%21ss" not in repr(SETTINGS)
    argv = start(IMAGE, SETTINGS, GRANT, with_cert=False).argv
    assert "pa%21ss" not in str(argv)
    asked = str(body(PLACE, IMAGE, GRANT, "runc", "abc", Taken("n", ())))
    for secret in ("pa%21ss", "pa!ss", "prox7"):
        assert secret not in asked
        assert secret not in SETTINGS.without_passwords(f"no {secret}, https://a:{secret}@h/")
    assert SETTINGS.without_passwords("see https://x:y@h/z") == "see https://h/z"


@pytest.mark.parametrize(
    ("record", "lines", "said"),
    [
        pytest.param(ended(0), ["ERROR: of a package's own"], None, id="done"),
        pytest.param(ended(1), ["Collecting x", "ERROR: No x", ""], "installed: No x;", id="pip"),
        pytest.param(
            ended(1), [f"ERROR: {n}" for n in range(5)], "installed: 2; 3; 4;", id="last errors"
        ),
        pytest.param(ended(2), ["one", "two", " "], "installed: one; two;", id="last words"),
        pytest.param(
            ended(1),
            ["  ╰─> [2 lines of output]", "  Traceback", "  OSError: x", "  [end of output]", "",
             "error: metadata-generation-failed", "╰─> tool", "hint: See above for details."],
            "installed: tool; OSError: x;", id="a build",
        ),
        pytest.param(
            ended(1), ["not today", "[end of output]", "ERROR: Failed to build 'x'"],
            "installed: Failed to build 'x'; not today;", id="an error about a build",
        ),
        pytest.param(ended(1), [], "pip exited 1", id="no word"),
        pytest.param(ended(137, 1), ["x"], "limit of memory, 64000000 bytes", id="memory"),
        pytest.param(ended(1, 1), ["x"], "limit of memory, 64000000 bytes", id="a child's memory"),
        pytest.param(ended(0, 1), ["x"], "limit of memory, 64000000 bytes", id="pip did without"),
        pytest.param(
            ended(1), ["ERROR: [Errno 28] No space left on device"],
            "on this node: [Errno 28] No space left on device", id="the host's disk",
        ),
        pytest.param(
            ended(1), ["ERROR: OSError: [Errno 27] File too large"],
            "took over 1000000 bytes of disk, the task's limit is 1000000", id="one large file",
        ),
        pytest.param(ended(85), ["3.5"], "the python3 of image i:1 is too old", id="old"),
        pytest.param(RunRecord(STARTED, 2, None), [], "image i:1 has no python3", id="no python"),
    ],
)  # fmt: skip
def test_why(record: RunRecord, lines: list[str], said: str | None) -> None:
    found = why(record, lines, "i:1", GRANT)
    assert (found is None) if said is None else (found is not None and said in found.text)


@pytest.mark.parametrize(
    ("began_s", "moved_s", "said"),
    [
        pytest.param(100.0, 820.0, None, id="at its limits"),
        pytest.param(99.0, 1000.0, "not installed within 15 minutes (Collecting x)", id="long"),
        pytest.param(500.0, 819.0, "nothing moved for 180 s", id="still"),
    ],
)
def test_it_is_waited_for_while_something_moves(
    began_s: float, moved_s: float, said: str | None
) -> None:
    found = overdue(began_s, moved_s, 1000.0, "Collecting x")
    assert (found is None) if said is None else (found is not None and said in found.text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Collecting numpy>=2", "Collecting numpy>=2"),
        ("  Downloading numpy-2.whl (16 MB)", "Downloading numpy-2.whl (16 MB)"),
        ("WARNING: x", ""),
        ("Installing " + "x" * 200, "Installing " + "x" * 69),
    ],
)
def test_progress(line: str, said: str) -> None:
    assert progress(line) == said


def test_the_oldest_python_is_what_pip_says() -> None:
    assert (3, 9) <= python_floor() <= (3, 14)


def test_a_layer_comes_first_for_python_and_last_for_programs() -> None:
    assert with_requirements({"PATH": "/bin", "PYTHONPATH": "/x"}) == {
        "PATH": f"/bin:{REQUIREMENTS_AT}/bin", "PYTHONPATH": f"{REQUIREMENTS_AT}:/x",
    }  # fmt: skip
    given = with_requirements({})
    assert given["PYTHONPATH"] == REQUIREMENTS_AT
    assert given["PATH"].startswith("/usr/local/sbin:")
