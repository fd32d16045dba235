"""What lies in the repository and where, judged on what git tracks."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = {
    *("pyproject.toml", "README.md", "LICENSE", "supervisor.conf", "install.sh"),
    *("procs", "proto", "shared", "tests"),
}
GENERATED = ("hivemind_pb2.py", "hivemind_pb2.pyi", "hivemind_pb2_grpc.py")
# Of a developer's machine or its package registry; split here so that this file has none.
FOREIGN = re.compile("/" + r"(work|root)/(?!\.)" + "|py" + r"pi\.org/|file:" + "///")


def _tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_nothing_else_lies_at_the_top_but_dotfiles() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in _tracked()}
    assert {name for name in names if not name.startswith(".")} == TOP


def test_proto_holds_only_proto_files() -> None:
    assert {path.suffix for path in _tracked("proto")} == {".proto"}


def test_generated_code_is_what_the_contract_generates(tmp_path: Path) -> None:
    generate = [sys.executable, "-m", "grpc_tools.protoc", "-Ishared/pb=proto"]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*generate, *outputs, "proto/hivemind.proto"], cwd=ROOT, check=True)
    for name in GENERATED:
        fresh = (tmp_path / "shared/pb" / name).read_text()
        assert (ROOT / "shared/pb" / name).read_text() == fresh, f"generate {name} again"


def test_no_file_names_a_developers_machine() -> None:
    found = []
    for path in _tracked():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if FOREIGN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_every_shell_script_is_clean() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [str(path) for path in _tracked("*.sh", ".ci/run")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_script_that_is_called_by_its_path_may_be_executed() -> None:
    called = ("install.sh", ".ci/run", "tests/system/engine", "procs/executor/image/build.sh")
    scripts = [path for path in _tracked(*called) if path.suffix in (".sh", "")]
    assert [path for path in scripts if not path.stat().st_mode & 0o100] == []
