"""The map is true: supervisor.conf, the topics, the folders and the imports agree with the code."""

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.messages import MESSAGES
from shared.topics import TOPICS, owned_by

ROOT = Path(__file__).parents[1]
NOT_SUPERVISED = {"master", "client", "cli", "tap"}  # command lines, and the reference master
LONGEST_FUNCTION = 60
BROAD = {"Exception", "BaseException"}
ONE_BROAD_EXCEPT = Path("shared/service.py")
NOT_IN_CORE = {
    "asyncio", "docker", "fcntl", "grpc", "logging", "multiprocessing", "os", "psutil", "pynvml",
    "requests", "select", "shutil", "signal", "socket", "sqlite3", "sqlalchemy", "ssl", "starlette",
    "subprocess", "tempfile", "threading", "time", "urllib.request", "uvicorn", "zmq",
}  # fmt: skip
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("shared", "procs")
    for path in (ROOT / folder).rglob("*.py")
    if "pb" not in path.parts
)
PER_FILE = pytest.mark.parametrize("path", FILES, ids=str)


def programs() -> dict[str, configparser.SectionProxy]:
    """The programs of supervisor.conf by name; the event listener is one."""
    conf = configparser.RawConfigParser()
    conf.read(ROOT / "supervisor.conf")
    kinds = ("program:", "eventlistener:")
    return {s.split(":")[1]: conf[s] for s in conf.sections() if s.startswith(kinds)}


def folder(program: str) -> str:
    return program.partition("@")[0]


# ------------------------------------------------------------------ tables


def test_each_owner_of_a_topic_is_a_program() -> None:
    assert {topic.owner for topic in TOPICS.values()} <= {folder(name) for name in programs()}


@pytest.mark.parametrize("name", programs())
def test_each_program_says_something(name: str) -> None:
    assert owned_by(name)


def test_each_program_has_its_folder_and_each_folder_its_program() -> None:
    folders = {path.parent.name for path in (ROOT / "procs").glob("*/__init__.py")}
    assert folders == {folder(name) for name in programs()} | NOT_SUPERVISED


@pytest.mark.parametrize("name", programs())
def test_each_program_can_be_started(name: str) -> None:
    """start.sh becomes `python -m procs.FOLDER`."""
    assert (ROOT / "procs" / folder(name) / "__main__.py").is_file()


@pytest.mark.parametrize("name", programs())
def test_each_program_comes_back_unless_its_settings_are_wrong(name: str) -> None:
    program = programs()[name]
    start = f"/bin/sh %(here)s/procs/start.sh {name.replace('@', ' ')}"
    assert dict(program) | {"command": start, "directory": "%(here)s"} == dict(program)
    assert program["startsecs"] == "0"
    assert program["autorestart"] == "unexpected"
    assert program["exitcodes"] == "2"
    assert program["stopasgroup"] == program["killasgroup"] == "true"
    assert program["stdout_logfile"] == program["stderr_logfile"] == "NONE"


def test_each_topic_has_its_message_and_each_message_its_topic() -> None:
    assert MESSAGES.keys() == TOPICS.keys()
    for topic, kind in MESSAGES.items():
        assert kind.__name__ == "".join(word.capitalize() for word in topic.split("."))


def test_no_topic_is_a_prefix_of_another() -> None:
    for one in TOPICS:
        assert [other for other in TOPICS if other.startswith(one)] == [one]


# ------------------------------------------------------------------ imports


def test_the_import_contracts_hold() -> None:
    linter = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    ended = subprocess.run([*linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "core.py"], ids=str)
def test_a_core_imports_no_io_and_no_clock(path: Path) -> None:
    found = {
        name
        for name in imported(parsed(path))
        if name in NOT_IN_CORE or name.partition(".")[0] in NOT_IN_CORE
    }
    assert not found


# ------------------------------------------------------------------ how code reads


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@PER_FILE
def test_no_function_is_long(path: Path) -> None:
    for function in functions(path):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        assert length <= LONGEST_FUNCTION, f"{path}:{function.lineno} {function.name}"


@PER_FILE
def test_every_function_is_annotated(path: Path) -> None:
    for function in functions(path):
        where = f"{path}:{function.lineno} {function.name}"
        assert function.returns is not None, where
        given = function.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        for argument in [*named, *filter(None, (given.vararg, given.kwarg))]:
            assert argument.annotation or argument.arg in ("self", "cls"), where


def raised_again(node: ast.ExceptHandler) -> bool:
    """Tidies up and lets it go on."""
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def broad_excepts(path: Path) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler)
        and not raised_again(node)
        and (
            node.type is None
            or any(isinstance(n, ast.Name) and n.id in BROAD for n in ast.walk(node.type))
        )
    ]


@PER_FILE
def test_nothing_is_caught_that_can_not_be_handled(path: Path) -> None:
    assert len(broad_excepts(path)) == (1 if path == ONE_BROAD_EXCEPT else 0), path
