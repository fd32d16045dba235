"""Flag > environment > file > default for every setting; what is wrong is one clear line."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.settings import (
    LOCATING,
    NAMES,
    SETTINGS,
    Settings,
    SettingsError,
    Threshold,
    default_table,
    find_home,
    is_loopback,
    load,
    split_address,
)

SECRET = f"hm1.{'a' * 52}.{'sesame' * 5}"

ALERTS = [
    ("70,60,5", Threshold(70.0, 60.0, 5.0)), ("off", Threshold(math.inf, math.inf, 0.0)),
    ("1,0,0", Threshold(1.0, 0.0, 0.0)),
]  # fmt: skip

# (name, default as it arrives, then three texts with what each becomes)
TABLE: list[tuple[str, str, Any, list[tuple[str, Any]]]] = [
    ("MASTER_NODE_URL", "master_url", "",
     [("https://a", "https://a"), ("https://b:1/", "https://b:1"), ("http://[::1]:8", "http://[::1]:8")]),
    ("MASTER_JOIN_TOKEN", "join_token", "", [(t, t) for t in (SECRET, SECRET + "b", SECRET + "c")]),
    ("NODE_NAME", "node_name", None, [("a", "a"), ("b", "b"), ("c d", "c d")]),
    ("RESOURCE_REPORT_INTERVAL", "report_interval_s", 30.0,
     [("1", 1.0), ("2.5", 2.5), ("86400", 86400.0)]),
    ("LOG_LEVEL", "log_level", "INFO",
     [("debug", "DEBUG"), ("WARNING", "WARNING"), ("Error", "ERROR")]),
    ("DOCKER_HOST", "docker_host", "unix:///var/run/docker.sock",
     [("unix:///a", "unix:///a"), ("tcp://b:1", "tcp://b:1"), ("unix:///c", "unix:///c")]),
    ("TASK_IMAGE", "task_image", "justin308/hivemind-worker",
     [("a", "a"), ("b:1", "b:1"), ("c/d", "c/d")]),
    ("ALLOWED_IMAGES", "allowed_images", ("*",),
     [("a", ("a",)), ("a, b*", ("a", "b*")), ("a:1 b/**", ("a:1", "b/**"))]),
    ("IMAGE_DISK_PCT", "image_disk_pct", 85, [("1", 1), ("70", 70), ("100", 100)]),
    ("MAX_HELD_TASKS", "max_held_tasks", 100, [("1", 1), ("7", 7), ("10000", 10000)]),
    ("RESERVED_CPUS", "reserved_cpus", None, [("0", 0.0), ("1", 1.0), ("0.5", 0.5)]),
    ("RESERVED_MEMORY", "reserved_memory_bytes", None,
     [("512m", 512 * 2**20), ("1.5G", 3 * 2**29), ("2 GiB", 2**31)]),
    ("EGRESS", "egress", True, [("off", False), ("on", True), ("off", False)]),
    ("EGRESS_DNS", "egress_dns", (),
     [("1.1.1.1", ("1.1.1.1",)), ("8.8.8.8,9.9.9.9", ("8.8.8.8", "9.9.9.9")),
      ("10.0.0.1 10.0.0.2", ("10.0.0.1", "10.0.0.2"))]),
    ("PIP_INDEX_URL", "pip_index_url", "",
     [(url, url) for url in ("https://a/b", "http://u:p@h:1/s/", "https://c")]),
    ("PIP_EXTRA_INDEX_URL", "pip_extra_index_url", "",
     [("https://a", "https://a"), ("http://b", "http://b"),
      ("https://a   http://b", "https://a http://b")]),
    ("PIP_PROXY", "pip_proxy", "",
     [(url, url) for url in ("http://h:3128", "http://a", "https://u:p@b")]),
    ("PIP_CERT", "pip_cert", None, [(path, Path(path)) for path in ("/a/b", "/c", "/d")]),
    ("SANDBOX", "sandbox", "runc", [("runsc", "runsc"), ("runc", "runc"), ("runsc", "runsc")]),
    ("TASK_LISTEN", "task_listen", "",
     [("vpn:9", "vpn:9"), ("127.0.0.1:1", "127.0.0.1:1"), ("[::1]:2", "[::1]:2")]),
    ("VPN", "vpn", "auto", [("off", "off"), ("required", "required"), ("auto", "auto")]),
    ("WIREGUARD_CONFIG_PATH", "wireguard_config", "wg0.conf",
     [("a", "a"), ("./b", "b"), ("/c/d", "/c/d")]),
    ("WEB_LISTEN", "web_port", 5001, [("127.0.0.1:1", 1), ("localhost:2", 2), ("[::1]:0", 0)]),
    ("WEB_TOKEN", "web_token", "", [("a", "a"), ("b", "b"), ("c", "c")]),
    ("GPU_SETS", "gpu_sets", "", [("0", "0"), ("0;1", "0;1"), ("0,1;2", "0,1;2")]),
    *((name.upper(), name, default, ALERTS) for name, default in (
        ("alert_cpu", Threshold(95.0, 85.0, 60.0)),
        ("alert_memory", Threshold(90.0, 85.0, 10.0)),
        ("alert_swap", Threshold(80.0, 70.0, 60.0)),
        ("alert_disk", Threshold(95.0, 92.0, 0.0)),
        ("alert_image_disk", Threshold(95.0, 92.0, 0.0)),
        ("alert_temperature", Threshold(100.0, 95.0, 60.0)),
        ("alert_cpu_pressure", Threshold(math.inf, math.inf, 0.0)),
        ("alert_memory_pressure", Threshold(20.0, 10.0, 30.0)),
        ("alert_io_pressure", Threshold(80.0, 60.0, 60.0)),
    )),
    ("ALERT_GPU_TEMPERATURE", "alert_gpu_temperature", Threshold(90.0, 85.0, 10.0),
     [("80,70,5", Threshold(80.0, 70.0, 5.0)), ("80, 80, 0", Threshold(80.0, 80.0, 0.0)),
      ("91.5,90,1", Threshold(91.5, 90.0, 1.0))]),
    ("ALERT_GPU_MEMORY", "alert_gpu_memory", Threshold(98.0, 95.0, 30.0),
     [("90,80,5", Threshold(90.0, 80.0, 5.0)), ("1,0,0", Threshold(1.0, 0.0, 0.0)),
      ("99,98,60", Threshold(99.0, 98.0, 60.0))]),
    ("DEBUG_RETENTION", "debug_retention_h", 24.0, [("0", 0.0), ("0.5", 0.5), ("8760", 8760.0)]),
]  # fmt: skip
ROWS = [pytest.param(*row, id=row[0]) for row in TABLE]


def loaded(
    home: Path,
    environment: Mapping[str, str] | None = None,
    file: str | None = None,
    flags: Mapping[str, str] | None = None,
) -> Settings:
    if file is not None:
        (home / "worker.conf").write_text(file, encoding="utf-8")
    return load({"HIVEMIND_HOME": str(home)} | dict(environment or {}), home, flags)


def test_the_table_here_is_the_table_there() -> None:
    assert [row[0] for row in TABLE] == [setting.name for setting in SETTINGS]
    assert [name for name, _, _ in default_table()] == [*LOCATING, *(row[0] for row in TABLE)]


@pytest.mark.parametrize(("name", "field", "default", "texts"), ROWS)
def test_flag_over_environment_over_file_over_default(
    tmp_path: Path, name: str, field: str, default: Any, texts: list[tuple[str, Any]]
) -> None:
    (flag, as_flag), (environment, as_environment), (line, as_line) = texts
    flags, variables, file = {name: flag}, {name: environment}, f"{name}={line}\n"
    if field == "wireguard_config":
        default, as_flag, as_environment, as_line = (
            tmp_path / value for value in (default, as_flag, as_environment, as_line)
        )
    if default is not None:
        assert getattr(loaded(tmp_path), field) == default
    assert getattr(loaded(tmp_path, file=file), field) == as_line
    assert getattr(loaded(tmp_path, variables, file), field) == as_environment
    assert getattr(loaded(tmp_path, variables, file, flags), field) == as_flag


@pytest.mark.parametrize(("name", "field", "default", "texts"), ROWS)
def test_empty_means_unset(
    tmp_path: Path, name: str, field: str, default: Any, texts: list[tuple[str, Any]]
) -> None:
    unset = loaded(tmp_path)
    assert loaded(tmp_path, {name: ""}, f"{name}=\n", {name: ""}) == unset
    assert loaded(tmp_path, {name: " \t"}, f'{name}=""\n', {name: " "}) == unset
    assert loaded(tmp_path, {name: ""}, f"{name}={texts[0][0]}\n") != unset


@pytest.mark.parametrize(
    ("line", "value"),
    [
        pytest.param("NODE_NAME=a", "a", id="plain"),
        pytest.param("  NODE_NAME =  a b  ", "a b", id="spaces around"),
        pytest.param('NODE_NAME="a b"', "a b", id="double quotes"),
        pytest.param("NODE_NAME='a b'", "a b", id="single quotes"),
        pytest.param("NODE_NAME=\"'a'\"", "'a'", id="one pair only"),
        pytest.param("NODE_NAME=\"a'", "\"a'", id="quotes that do not match"),
        pytest.param('NODE_NAME="', '"', id="one quote"),
        pytest.param("NODE_NAME=a=b", "a=b", id="equals in the value"),
        pytest.param("NODE_NAME=a # b", "a # b", id="a comment is a whole line"),
        pytest.param("NODE_NAME=$HOME ${X} `y` \\n", "$HOME ${X} `y` \\n", id="nothing expanded"),
        pytest.param("# NODE_NAME=b\n\n  # c\nNODE_NAME=a\n#", "a", id="comments"),
        pytest.param("NODE_NAME=a\r\nVPN=off\r\n", "a", id="lines of another system"),
        pytest.param("NODE_NAME=ü☃", "ü☃", id="unicode"),
        pytest.param("\ufeffNODE_NAME=a", "a", id="a byte order mark"),
    ],
)
def test_lines_of_the_file(tmp_path: Path, line: str, value: str) -> None:
    assert loaded(tmp_path, file=line).node_name == value


@pytest.mark.parametrize(
    ("file", "said"),
    [
        pytest.param("VPN=off\n\nVPN=auto", ":3: VPN is set twice", id="twice"),
        pytest.param("VPM=off", ":1: there is no setting 'VPM'", id="unknown"),
        pytest.param("vpn=off", ":1: there is no setting 'vpn'", id="wrong case"),
        pytest.param("export VPN=off", ":1: there is no setting 'export VPN'", id="export"),
        pytest.param("HIVEMIND_HOME=/x", "no setting 'HIVEMIND_HOME'", id="environment only"),
        pytest.param("# c\nVPN off", ":2: must be KEY=VALUE", id="no equals"),
        pytest.param("=off", ":1: there is no setting ''", id="no name"),
    ],
)
def test_a_wrong_line_is_one_clear_line(tmp_path: Path, file: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, file=file)
    assert said in str(caught.value)
    assert str(tmp_path / "worker.conf") in str(caught.value)
    assert "\n" not in str(caught.value)


NUMBER = "must be a number"
URL = "must be a URL such as https://master.example.org"
HTTPS = "must begin with https:// unless its host is a loopback address"
ADDRESS = "must be HOST:PORT, such as 127.0.0.1:5001"
SIZE = "must be a size such as 512m or 2g"
PATTERN = "which is not a pattern such as python, debian:1? or ghcr.io/acme/**"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MASTER_NODE_URL", "master.example.org", URL),
        ("MASTER_NODE_URL", "ftp://a", URL),
        ("MASTER_NODE_URL", "https://", URL),
        ("MASTER_NODE_URL", "https://[::1", URL),
        ("MASTER_NODE_URL", "https://a:99999", URL),
        ("MASTER_NODE_URL", "https://a:x", URL),
        ("MASTER_NODE_URL", "http://master.example.org", HTTPS),
        ("MASTER_NODE_URL", "http://10.0.0.1:8080", HTTPS),
        ("MASTER_NODE_URL", "http://localhost.example.org", HTTPS),
        ("MASTER_NODE_URL", "http://127.0.0.1@example.org", HTTPS),
        ("TASK_IMAGE", "Debian:12", "such as debian:12, in lower case"),
        ("TASK_IMAGE", "--privileged", "such as debian:12, in lower case"),
        ("TASK_IMAGE", "f" * 64, "name the image, and its digest if that matters"),
        ("ALLOWED_IMAGES", "a b[12]", PATTERN),
        ("ALLOWED_IMAGES", "Python", PATTERN),
        ("ALLOWED_IMAGES", "a@sha256:12", PATTERN),
        ("ALLOWED_IMAGES", "a,\x1b[2J", PATTERN),
        ("RESOURCE_REPORT_INTERVAL", "soon", NUMBER),
        ("RESOURCE_REPORT_INTERVAL", "-1", NUMBER),
        ("RESOURCE_REPORT_INTERVAL", "nan", NUMBER),
        ("RESOURCE_REPORT_INTERVAL", "1e3", NUMBER),
        ("RESOURCE_REPORT_INTERVAL", "0.5", "must be between 1 and 86400 seconds"),
        ("RESOURCE_REPORT_INTERVAL", "9" * 400, NUMBER),
        ("LOG_LEVEL", "loud", "must be DEBUG or INFO or WARNING or ERROR"),
        ("IMAGE_DISK_PCT", "0", "must be a whole number from 1 to 100"),
        ("IMAGE_DISK_PCT", "101", "must be a whole number from 1 to 100"),
        ("IMAGE_DISK_PCT", "85%", "must be a whole number from 1 to 100"),
        ("MAX_HELD_TASKS", "0", "must be a whole number from 1 to 10000"),
        ("MAX_HELD_TASKS", "1.5", "must be a whole number from 1 to 10000"),
        ("MAX_HELD_TASKS", "10001", "must be a whole number from 1 to 10000"),
        ("MAX_HELD_TASKS", "9" * 5000, "must be a whole number from 1 to 10000"),
        ("RESERVED_CPUS", "two", NUMBER),
        ("RESERVED_CPUS", "9" * 400, NUMBER),
        ("RESERVED_MEMORY", "much", SIZE),
        ("RESERVED_MEMORY", "1p", SIZE),
        ("RESERVED_MEMORY", "-1g", SIZE),
        ("RESERVED_MEMORY", "9" * 400, SIZE),
        ("EGRESS", "yes", "must be on or off"),
        ("GPU_SETS", "all", "must be indices or UUIDs such as 0,1;2,3"),
        ("GPU_SETS", "0;0", "names GPU 0 twice"),
        ("ALERT_GPU_MEMORY", "98", "must be off, or RAISE,CLEAR,SECONDS such as 90,85,10"),
        ("ALERT_GPU_MEMORY", "98,95,soon", NUMBER),
        ("ALERT_GPU_MEMORY", "95,98,30", "must not clear over where it is raised"),
        ("DEBUG_RETENTION", "1d", NUMBER),
        ("DEBUG_RETENTION", "9000", "must be at most 8760 hours, a year"),
        ("SANDBOX", "chroot", "must be runc or runsc"),
        ("TASK_LISTEN", "0.0.0.0:1", "must be vpn:PORT or a loopback address with its port"),
        ("TASK_LISTEN", "vpn", ADDRESS),
        ("TASK_LISTEN", "vpn:70000", ADDRESS),
        ("VPN", "on", "must be auto or off or required"),
        ("WEB_LISTEN", "5001", ADDRESS),
        ("WEB_LISTEN", ":5001", ADDRESS),
        ("WEB_LISTEN", "127.0.0.1:http", ADDRESS),
        ("WEB_LISTEN", "127.0.0.1:-1", ADDRESS),
        ("WEB_LISTEN", "::1:5001", ADDRESS),
        ("WEB_LISTEN", "127.0.0.1:" + "9" * 5000, ADDRESS),
        ("MASTER_JOIN_TOKEN", "hm1.a.b", "must be a token hm1.….… as the master's owner gave it"),
        ("NODE_NAME", "a\nb", "must be one line of text"),
        ("LOG_LEVEL", "INFO\nDEBUG", "must be DEBUG or INFO or WARNING or ERROR"),
    ],
)
def test_a_malformed_value_is_one_line_that_says_what_would_be_right(
    tmp_path: Path, name: str, value: str, said: str
) -> None:
    for environment, flags in (({name: value}, {}), ({}, {name: value})):
        with pytest.raises(SettingsError) as caught:
            loaded(tmp_path, environment, flags=flags)
        text = str(caught.value)
        assert text.startswith(f"{name}=")
        assert text.endswith(said)
        assert "\n" not in text


def test_the_page_is_off_loopback_only_with_a_token(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^WEB_LISTEN is not a loopback .*set WEB_TOKEN too$"):
        loaded(tmp_path, {"WEB_LISTEN": "0.0.0.0:5001"})
    settings = loaded(tmp_path, {"WEB_LISTEN": "0.0.0.0:5001", "WEB_TOKEN": SECRET})
    assert (settings.web_host, settings.web_port) == ("0.0.0.0", 5001)


def test_an_ipv6_host_can_be_bound(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"WEB_LISTEN": "[::1]:5001"}).web_host == "::1"


@pytest.mark.parametrize("name", [name for name in sorted(NAMES) if name.endswith("TOKEN")])
def test_a_token_is_never_shown(tmp_path: Path, name: str) -> None:
    assert SECRET not in repr(loaded(tmp_path, {name: SECRET}))
    sources: tuple[dict[str, Any], ...] = (
        {"environment": {name: f"{SECRET}\nb"}},
        {"file": f"{name} {SECRET}"},
        {"file": f"{name}={SECRET}\n{name}={SECRET}"},
        {"file": f"{name}={SECRET}", "environment": {"VPN": "wrong"}},
        {"file": SECRET},
    )
    for settings in sources:
        with pytest.raises(SettingsError) as caught:
            loaded(tmp_path, **settings)
        assert SECRET not in str(caught.value)


def test_relative_paths_are_under_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    settings = loaded(tmp_path, {"WIREGUARD_CONFIG_PATH": "./a/wg9.conf"})
    assert settings.wireguard_config == tmp_path / "a" / "wg9.conf"
    (tmp_path / "other.conf").write_text("VPN=off")
    assert loaded(tmp_path, {"HIVEMIND_CONFIG": "other.conf"}).vpn == "off"
    assert load({"HIVEMIND_HOME": "h"}, tmp_path).home == elsewhere / "h"


def test_a_named_file_replaces_the_usual_one(tmp_path: Path) -> None:
    other = tmp_path / "other.conf"
    other.write_text("NODE_NAME=other")
    settings = loaded(tmp_path, {"HIVEMIND_CONFIG": str(other)}, "NODE_NAME=usual\nVPN=off")
    assert (settings.node_name, settings.vpn) == ("other", "auto")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", "directory"])
def test_a_file_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "other.conf"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(SettingsError, match=r"other\.conf.*(can't be read|no such file)"):
        loaded(tmp_path, {"HIVEMIND_CONFIG": "other.conf"})


def test_the_home_is_beside_supervisor_conf(tmp_path: Path) -> None:
    (tmp_path / "supervisor.conf").write_text("")
    assert find_home({}, tmp_path) == tmp_path / "var"
    assert find_home({"HIVEMIND_HOME": ""}, tmp_path) == tmp_path / "var"
    assert find_home({"HIVEMIND_HOME": "/h"}, tmp_path) == Path("/h")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
        ("[::1]", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
        ("localhost.example.org", False), ("127.0.0.1.example.org", False), ("", False),
    ],
)  # fmt: skip
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_split_address() -> None:
    assert split_address("vpn:9") == ("vpn", 9)
    assert split_address("[::1]:9") == ("[::1]", 9)
