"""Requirements on a real engine, behind the real firewall, from an index with a password."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procs.executor.engine import DockerEngine
from procs.executor.install_box import TOO_OLD
from shared.taskdir import LAYERS, MIB, TaskKey
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.fakes.hostile_image import make_image
from tests.fakes.pip_index import PASSWORD, PASSWORD_ITSELF, PipIndex
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

USE = ("python3", "-c", "import tool; print(tool.NAME)")
SECRETS = (PASSWORD, PASSWORD_ITSELF)


@pytest.fixture(scope="module")
def namespace(engine: PrivateEngine) -> str:
    assert engine.task_image
    return (engine.folder / "namespace").read_text().strip()


@pytest.fixture(scope="module")
def index(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipIndex]:
    made = PipIndex(tmp_path_factory.mktemp("index"), namespace)
    for version in range(1, 10):
        made.put("tool", f"{version}", {"tool.py": b"NAME = 'tool %d'\n" % version}, "helper")
    made.put("helper", "1", {"helper.py": b"", "helper-1.data/scripts/get-help": b"#!python\n"})
    made.put("large", "1", {"large.bin": os.urandom(24 * MIB)})
    yield made
    made.close()


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine, namespace: str, index: PipIndex) -> Iterator[ExecutorAlone]:
    alone = ExecutorAlone(
        engine.host, namespace, PIP_INDEX_URL=index.url, PIP_CERT=str(index.cert)
    ).start()
    yield alone
    alone.stop()


@pytest.fixture
def held(index: PipIndex) -> Iterator[PipIndex]:
    """The index holds the packages back until the test lets it go."""
    index.go.clear()
    yield index
    index.go.set()


def need(
    executor: ExecutorAlone, name: str, *lines: str, command: tuple[str, ...] = USE, **more: Any
) -> TaskKey:
    fields = {"cpus": 1.5, "requirements": lines, **more}
    return executor.assign(task(*command, name=name, **fields))


def detail(executor: ExecutorAlone, key: TaskKey) -> str:
    held = executor.held(key)
    return held.detail if held else ""


def installing(executor: ExecutorAlone) -> list[dict[str, Any]]:
    labels = [f"hivemind.home={executor.home}", "hivemind.layer"]
    found: list[dict[str, Any]] = executor.docker.containers(all=True, filters={"label": labels})
    return found


def on_disk(executor: ExecutorAlone, hidden: bool) -> list[Path]:
    places = (executor.home / LAYERS).iterdir()
    return [place for place in places if place.name.startswith(".") is hidden]


def pip_runs(executor: ExecutorAlone, index: PipIndex, before: int) -> None:
    executor.wait(lambda: len(index.asked) > before, "pip at work")


def test_two_tasks_share_one_installation_and_have_no_network(
    executor: ExecutorAlone, held: PipIndex
) -> None:
    code = (
        "import socket, tool, helper, os\n"
        "print(tool.NAME, sorted(os.listdir('/sys/class/net')))\n"
        "for path in (tool.__file__, '/requirements/more', tool.__cached__):\n"
        "    try:\n        open(path, 'a')\n"
        "    except OSError as err:\n        print(err.strerror)\n"
        "try:\n    os.chmod('/requirements', 0o777)\n"
        "except OSError as err:\n    print(err.strerror)\n"
        "os.execvp('sh', ('sh', '-c', 'command -v get-help'))\n"
    )
    command = ("python3", "-c", code)
    keys = [need(executor, f"share-{n}", "Tool == 1", command=command) for n in range(2)]
    executor.wait(lambda: held.downloads("tool"), "a download")
    (container,) = installing(executor)
    shown = str(executor.docker.inspect_container(container["Id"]))
    assert not [secret for secret in SECRETS if secret in shown]
    executor.wait(lambda: "Collecting" in detail(executor, keys[0]), "pip's word")
    held.go.set()
    reports = [executor.wait_report(key) for key in keys]
    assert [(r.phase, r.error) for r in reports] == [("succeeded", "")] * 2
    shut = ("Permission denied\n" + "Read-only file system\n") * 2
    expected = f"tool 1 ['lo']\n{shut}/requirements/bin/get-help\n"
    assert [executor.output(key).decode() for key in keys] == [expected] * 2
    assert (held.downloads("tool"), held.downloads("helper")) == (1, 1)
    assert installing(executor) == []
    assert on_disk(executor, hidden=True) == []


def test_a_layer_that_was_harmed_is_made_anew(executor: ExecutorAlone, index: PipIndex) -> None:
    executor.wait_report(need(executor, "harmed-1", "tool==2"))
    (changed,) = executor.home.glob(f"{LAYERS}/*/site/tool-2.dist-info")
    site = changed.parent
    executor.kill()
    (site / "tool.py").write_bytes(b"NAME = 'harmed'\n")
    key = need(executor, "harmed-2", "tool==2")
    assert executor.wait_report(key).phase == "succeeded"
    assert executor.output(key) == b"tool 2\n"
    assert index.downloads("tool-2") == 2


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        ("no-such", ("no-such-thing>=1",), "No matching distribution found for no-such-thing"),
        ("no-version", ("tool==99",), "No matching distribution found for tool==99"),
    ],
)
def test_what_can_not_be_installed_is_said(
    executor: ExecutorAlone, index: PipIndex, name: str, lines: tuple[str, ...], said: str
) -> None:
    report = executor.wait_report(need(executor, name, *lines))
    assert (report.phase, report.cause, report.exit_code) == ("failed", "dependencies", -1)
    assert said in report.error
    assert not [secret for secret in SECRETS if secret in report.error]


def test_an_image_without_python_is_said(executor: ExecutorAlone) -> None:
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    executor.docker.import_image_from_data(empty.getvalue(), repository="hivemind-test-bare")
    report = executor.wait_report(need(executor, "bare", "tool", image="hivemind-test-bare"))
    assert report.cause == "dependencies"
    assert "image hivemind-test-bare has no python3" in report.error


def test_past_the_tasks_disk_it_ends_but_not_for_who_has_more(
    executor: ExecutorAlone, held: PipIndex
) -> None:
    command = ("python3", "-c", "import os; print(os.path.getsize('/requirements/large.bin'))")
    small = need(executor, "small", "large", command=command, disk_bytes=16 * MIB)
    executor.wait(lambda: held.downloads("large"), "a download")
    roomy = need(executor, "roomy", "large", command=command, disk_bytes=256 * MIB)
    executor.wait(lambda: "installing" in detail(executor, roomy), "the roomy one waiting too")
    held.go.set()
    report = executor.wait_report(small)
    assert (report.phase, report.cause) == ("failed", "dependencies")
    assert "the task's limit is 16777216" in report.error
    assert executor.wait_report(roomy).phase == "succeeded"
    assert executor.output(roomy) == b"%d\n" % (24 * MIB)


def test_when_nobody_waits_any_more_it_ends(executor: ExecutorAlone, held: PipIndex) -> None:
    before = len(held.asked)
    key = need(executor, "cancelled", "tool==3")
    pip_runs(executor, held, before)
    executor.cancel(key)
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("cancelled", -1)
    executor.wait(lambda: installing(executor) == [], "its container gone")
    executor.wait(lambda: on_disk(executor, hidden=True) == [], "its folder gone")


AT: dict[str, Callable[[ExecutorAlone], object]] = {
    "folder": lambda e: on_disk(e, hidden=True),
    "container": installing,
    "process": lambda e: [c for c in installing(e) if c["State"] == "running"],
}


@pytest.mark.parametrize(("version", "step"), [(4, "folder"), (5, "container"), (6, "process")])
def test_killed_anywhere_in_it_the_next_life_begins_anew(
    executor: ExecutorAlone, held: PipIndex, version: int, step: str
) -> None:
    key = need(executor, f"killed-{step}", f"tool=={version}")
    executor.wait(lambda: AT[step](executor), step)
    executor.kill()
    before = [c["Id"] for c in installing(executor)]
    executor.wait(lambda: not [c for c in installing(executor) if c["Id"] in before], "swept")
    held.go.set()
    assert executor.wait_report(key).phase == "succeeded"
    assert executor.output(key) == b"tool %d\n" % version
    executor.wait(lambda: on_disk(executor, hidden=True) == [], "nothing left")
    assert installing(executor) == []


def test_a_container_that_is_lost_is_no_failure(executor: ExecutorAlone, held: PipIndex) -> None:
    before = len(held.asked)
    key = need(executor, "lost", "tool==7")
    pip_runs(executor, held, before)
    (container,) = installing(executor)
    executor.docker.remove_container(container["Id"], force=True)
    held.go.set()
    assert executor.wait_report(key).phase == "succeeded"
    assert executor.output(key) == b"tool 7\n"


def test_an_engine_that_goes_away_under_it_is_no_failure(
    engine: PrivateEngine, executor: ExecutorAlone, held: PipIndex
) -> None:
    before = len(held.asked)
    key = need(executor, "away", "tool==8")
    pip_runs(executor, held, before)
    engine.kill()
    executor.wait(lambda: not executor.available(), "the engine known to be away")
    engine.start()
    held.go.set()
    assert executor.wait_report(key).phase == "succeeded"
    assert executor.output(key) == b"tool 8\n"
    executor.wait(lambda: installing(executor) == [], "its container gone")


HOSTILE = """
import os, sys, time
said = "TRIED = []\\n"
def attempt(name, what):
    global said
    try:
        what()
        said += f"TRIED.append({name!r})\\n"
    except OSError:
        pass
site = "/output/site"
attempt("write to /", lambda: open("/x", "w"))
attempt("write to pip", lambda: open("/.pip/pip/__init__.py", "a"))
attempt("write to the lines", lambda: open("/task/requirements.txt", "a"))
attempt("write to the keeper", lambda: open("/.keeper", "a"))
attempt("give away", lambda: os.chown(site, 0, 0))
attempt("a device", lambda: os.mknod(site + "/device", 0o20666, os.makedev(1, 3)))
attempt("a link across", lambda: os.link("/.keeper", site + "/keeper"))
attempt("ptrace of the keeper", lambda: open("/proc/1/mem", "rb"))
if os.path.isdir(site) and not os.path.exists(site + "/late.py"):
    open(site + "/program.py", "w").write("A = 1\\n")
    os.chmod(site + "/program.py", 0o777)
    os.link(site + "/program.py", site + "/twin.py")
    os.symlink("/etc/shadow", site + "/shadow")
    late = open(site + "/late.py", "w")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            while True:  # outlives pip, with a file of the layer open
                late.write("A = 1\\n")
                late.flush()
                time.sleep(0.001)
        os._exit(0)
"""


def test_a_hostile_package_reaches_nothing_and_leaves_nothing_alive(
    executor: ExecutorAlone, index: PipIndex
) -> None:
    index.put_source("hostile", HOSTILE)
    code = (
        "import hostile, os\n"
        "print(hostile.TRIED)\n"
        "for name in ('program.py', 'twin.py', 'late.py'):\n"
        "    status = os.stat('/requirements/' + name)\n"
        "    print(name, oct(status.st_mode), status.st_uid)\n"
        "try:\n    open('/requirements/shadow')\n"
        "except OSError as err:\n    print(err.strerror)\n"
    )
    command = ("python3", "-c", code)
    first = need(executor, "hostile-1", "hostile", command=command)
    report = executor.wait_report(first)
    assert (report.phase, report.error) == ("succeeded", "")
    files = "".join(f"{n} 0o100555 0\n" for n in ("program.py", "twin.py"))
    expected = f"[]\n{files}late.py 0o100444 0\nNo such file or directory\n"
    assert executor.output(first).decode() == expected
    assert installing(executor) == []
    before = index.downloads("hostile")
    executor.kill()  # the next life holds the layer to what it was when it was sealed
    second = need(executor, "hostile-2", "hostile", command=command)
    executor.wait_report(second)
    assert executor.output(second).decode() == expected
    assert index.downloads("hostile") == before


@pytest.mark.parametrize(
    ("name", "does", "said"),
    [
        ("pipes", "os.mkfifo('p')", "they have 'p', which is no file, folder or link"),
        ("ids", "open('x', 'w'); os.chmod('x', 0o4755)", "'x', which is a set-id program"),
        ("exits", "raise SystemExit('not today')", "; not today;"),
    ],
)
def test_what_no_honest_package_does_is_the_requirements_fault(
    executor: ExecutorAlone, index: PipIndex, name: str, does: str, said: str
) -> None:
    within = "import os\nsaid, here = '', os.getcwd()\nos.chdir('/output/site')\n"
    once = f"if not os.listdir():\n    {does}\n"
    index.put_source(name, f"{within}{once}os.chdir(here)\n")
    report = executor.wait_report(need(executor, name, name))
    assert (report.phase, report.cause) == ("failed", "dependencies")
    assert said in report.error


def test_labels_of_an_image_make_no_container_anothers(
    executor: ExecutorAlone, held: PipIndex
) -> None:
    labels = {"hivemind.task": "victim", "hivemind.attempt": "1", "hivemind.layer": "x"}
    image = make_image(executor.docker, "hivemind-test-labels:1", Labels=labels)
    command = ("python3", "-c", "import time, tool; time.sleep(3); print(tool.NAME)")
    try:
        key = need(executor, "labels", "tool==9", image=image, command=command)
        executor.wait(lambda: AT["process"](executor), "an installation")
        door = DockerEngine(executor.docker_host)
        assert door.seen(str(executor.home)) == []
        held.go.set()
        executor.wait_phase(key, "running")
        assert door.installing(str(executor.home)) == []
        executor.kill()  # the next life removes what installations have left
        report = executor.wait_report(key)
        assert (report.phase, report.error) == ("succeeded", "")
    finally:
        executor.wait(lambda: installing(executor) == [], "the task's container gone")
        executor.docker.remove_image(image, force=True)


def test_the_password_is_nowhere(executor: ExecutorAlone) -> None:
    """After all of the above."""
    for path in executor.home.rglob("*"):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        assert not [secret for secret in SECRETS if secret.encode() in content], path


def test_our_own_exit_code_is_none_of_pips() -> None:
    assert TOO_OLD > 23
