"""The task image, in real containers that are sealed as the worker seals a task's."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.system.engine.private import BUILD_IMAGE, PrivateEngine

pytestmark = pytest.mark.docker

SEALED = ("--rm", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--user=65534:65534")


class Image:
    """Runs the task image on a folder of inputs, with an output folder of its own."""

    def __init__(self, engine: PrivateEngine, folder: Path) -> None:
        self._engine = engine
        self.inputs = folder / "task"
        self.output = folder / "output"
        self.inputs.mkdir(parents=True)
        self.output.mkdir()
        os.chown(self.output, 65534, 65534)

    def write(self, name: str, text: str) -> None:
        path = self.inputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @property
    def tag(self) -> str:
        return self._engine.task_image

    def command(self, *options: str) -> list[str]:
        volumes = (f"--volume={self.inputs}:/task:ro", f"--volume={self.output}:/output")
        return self._docker("run", *SEALED, *volumes, *options, self.tag)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command(), *command], capture_output=True, text=True)

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._docker(*arguments), capture_output=True, text=True)

    def build(self) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_HOST": self._engine.host}
        command = [str(BUILD_IMAGE), self.tag]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def _docker(self, *arguments: str) -> list[str]:
        return ["docker", "--host", self._engine.host, *arguments]


@pytest.fixture
def image(engine: PrivateEngine, tmp_path: Path) -> Image:
    return Image(engine, tmp_path / "sealed")


@pytest.mark.parametrize(
    ("scripts", "started"),
    [
        pytest.param(
            ["script.py", "app.py", "run.py", "task_script.py", "main.py"],
            "main.py",
            id="main first",
        ),
        pytest.param(
            ["script.py", "app.py", "run.py", "task_script.py"],
            "task_script.py",
            id="then task_script",
        ),
        pytest.param(["script.py", "app.py", "run.py", "other.py"], "run.py", id="then run"),
        pytest.param(["script.py", "app.py", "other.py"], "app.py", id="then app"),
        pytest.param(["script.py", "other.py"], "script.py", id="then script"),
        pytest.param(["other.py"], "other.py", id="else the only one"),
    ],
)
def test_without_a_command_the_tasks_own_script_starts(
    image: Image, scripts: list[str], started: str
) -> None:
    for name in scripts:
        image.write(name, f"print({name!r})")
    assert image.run().stdout.strip() == started


@pytest.mark.parametrize(
    ("scripts", "message"),
    [
        pytest.param(["data.csv"], "holds no Python script", id="none"),
        pytest.param(["a.py", "b.py"], "several scripts", id="several"),
    ],
)
def test_without_a_script_to_choose_it_says_so(
    image: Image, scripts: list[str], message: str
) -> None:
    for name in scripts:
        image.write(name, "")
    done = image.run()
    assert done.returncode == 2
    assert message in done.stderr


def test_a_command_finds_the_inputs_by_relative_names_and_writes_beside_them(image: Image) -> None:
    copy = "open('data/copy.txt', 'w').write(open('data/in.txt').read())"
    image.write("x.py", f"import helper; {copy}")
    image.write("helper.py", "")
    image.write("data/in.txt", "ünïcode")
    image.write(".hidden", "")
    done = image.run("python3", "x.py")
    assert done.returncode == 0, done.stderr
    assert (image.output / "data/copy.txt").read_text() == "ünïcode"
    regular = [path for path in image.output.rglob("*") if path.is_file() and not path.is_symlink()]
    assert regular == [image.output / "data/copy.txt"]
    assert (image.output / ".hidden").is_symlink()


def test_what_the_output_holds_already_is_kept(image: Image) -> None:
    image.write("state.txt", "from the input")
    (image.output / "state.txt").write_text("from an earlier run")
    assert image.run("cat", "state.txt").stdout == "from an earlier run"


def test_arguments_and_exit_code_pass_unchanged(image: Image) -> None:
    code = "import sys; print(sys.argv[1:]); sys.exit(7)"
    done = image.run("python3", "-c", code, "a b", "", "$HOME")
    assert done.returncode == 7
    assert done.stdout.strip() == "['a b', '', '$HOME']"


def test_signals_reach_the_script(image: Image) -> None:
    handler = "signal.signal(15, lambda *_: sys.exit(9))"
    image.write("main.py", f"import signal, sys; {handler}; print('up'); signal.pause()")
    name = "hivemind-test-signals"
    with subprocess.Popen(image.command(f"--name={name}"), stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        assert image.docker("kill", "--signal=TERM", name).returncode == 0
    assert run.returncode == 9


def test_it_is_python_3_for_an_unprivileged_user_with_a_home(image: Image) -> None:
    code = "import ssl, sqlite3, ctypes, lzma, sys, os, pathlib; "
    code += "print(sys.version_info >= (3, 10), os.getuid(), pathlib.Path.home(), os.getcwd())"
    assert image.run("python3", "-c", code).stdout.strip() == "True 65534 /tmp /output"


def test_without_a_user_given_it_is_not_root(image: Image) -> None:
    done = image.docker("run", "--rm", image.tag, "id", "-u")
    assert done.stdout.strip() == "65534"


def test_a_second_build_does_nothing(image: Image) -> None:
    before = image.docker("image", "inspect", "--format={{.Id}}", image.tag).stdout
    done = image.build()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{image.tag}\n", "")
    assert image.docker("image", "inspect", "--format={{.Id}}", image.tag).stdout == before
