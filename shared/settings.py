"""The settings: one table, parsed once, before privileges are dropped.

Flag > environment > file (HIVEMIND_CONFIG, else `<home>/worker.conf`) > default. The table in
README is tested against SETTINGS. A bad value is one clear line (SettingsError) and exit 2.
"""

import ipaddress
import math
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shared.gpu_sets import NONE, parse_sets
from shared.images import ImageNameError, read_image, read_pattern
from shared.join_token import read_token

EXIT_BAD_SETTINGS = 2  # supervisor.conf: such a process stays down


class SettingsError(ValueError):
    """A setting is wrong; the text says which, why, and what would be right."""


class Threshold(NamedTuple):
    """An alert is raised after `for_s` at or over `raise_at` (infinity: never), and cleared after
    as long under `clear_at`."""

    raise_at: float
    clear_at: float
    for_s: float


@dataclass(frozen=True)
class Settings:
    """Every setting, typed. Paths are absolute; secrets are kept out of repr()."""

    home: Path
    master_url: str
    join_token: str = field(repr=False)
    node_name: str
    report_interval_s: float
    log_level: str
    docker_host: str
    task_image: str
    allowed_images: tuple[str, ...]
    image_disk_pct: int
    max_held_tasks: int
    reserved_cpus: float | None
    reserved_memory_bytes: int | None
    egress: bool
    egress_dns: tuple[str, ...]
    pip_index_url: str = field(repr=False)  # these three may hold a password
    pip_extra_index_url: str = field(repr=False)
    pip_proxy: str = field(repr=False)
    pip_cert: Path | None
    sandbox: str
    task_listen: str
    vpn: str
    wireguard_config: Path
    web_host: str
    web_port: int
    web_token: str = field(repr=False)
    gpu_sets: str
    alert_cpu: Threshold
    alert_memory: Threshold
    alert_swap: Threshold
    alert_disk: Threshold
    alert_image_disk: Threshold
    alert_temperature: Threshold
    alert_cpu_pressure: Threshold
    alert_memory_pressure: Threshold
    alert_io_pressure: Threshold
    alert_gpu_temperature: Threshold
    alert_gpu_memory: Threshold
    debug_retention_h: float


@dataclass(frozen=True)
class Setting:
    """One line of the table: its name, the field it fills, its default as text, its parser."""

    name: str
    field: str
    default: str
    parse: Callable[[str], Any]
    meaning: str


def is_loopback(host: str) -> bool:
    """A loopback address, or the name that always is one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split_address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 host in brackets; ValueError says what is wrong."""
    found = re.fullmatch(r"(\[[^\[\]]+\]|[^\[\]:]+):([0-9]{1,5})", text)
    if not found or int(found[2]) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:5001")
    return found[1], int(found[2])


def _token(raw: str) -> str:
    if raw:
        read_token(raw)
    return raw


def _image(raw: str) -> str:
    read_image(raw)
    return raw


def _text(raw: str) -> str:
    if not raw.isprintable():
        raise ValueError("must be one line of text")
    return raw


def _url(raw: str) -> str:
    if not raw:
        return ""
    try:
        parts = urlsplit(_text(raw))
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port that is none
        usable = False
    if not usable or not parts.hostname:
        raise ValueError("must be a URL such as https://master.example.org")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("must begin with https:// unless its host is a loopback address")
    return raw.rstrip("/")


def _index(raw: str) -> str:
    """As pip takes it: http is the owner's word, of a mirror of their own."""
    try:
        parts = urlsplit(_text(raw))
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if raw and not usable:
        raise ValueError("must be a URL such as https://pypi.example.org/simple")
    return raw


def _indexes(raw: str) -> str:
    return " ".join(map(_index, raw.split()))


def _seconds(raw: str) -> float:
    value = _number(raw)
    if not 1 <= value <= 86400:
        raise ValueError("must be between 1 and 86400 seconds")
    return value


def _hours(raw: str) -> float:
    value = _number(raw)
    if value > 8760:
        raise ValueError("must be at most 8760 hours, a year")
    return value


def _number(raw: str) -> float:
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", raw):
        raise ValueError("must be a number")
    return float(raw)


def _count(raw: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", raw) or not 1 <= int(raw) <= 10_000:
        raise ValueError("must be a whole number from 1 to 10000")
    return int(raw)


def _percent(raw: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", raw) or not 1 <= int(raw) <= 100:
        raise ValueError("must be a whole number from 1 to 100")
    return int(raw)


def _size(raw: str) -> int | None:
    if not raw:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kmgt]?)i?b?", raw.lower())
    if not found:
        raise ValueError("must be a size such as 512m or 2g")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))


def _cpus(raw: str) -> float | None:
    return _number(raw) if raw else None


def _switch(raw: str) -> bool:
    if raw not in ("on", "off"):
        raise ValueError("must be on or off")
    return raw == "on"


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in words:
            raise ValueError("must be " + " or ".join(words))
        return raw

    return parse


def _threshold(raw: str) -> Threshold:
    """RAISE,CLEAR,SECONDS."""
    if raw == "off":
        return Threshold(math.inf, math.inf, 0.0)
    words = raw.split(",")
    if len(words) != 3:
        raise ValueError("must be off, or RAISE,CLEAR,SECONDS such as 90,85,10")
    found = Threshold(*(_number(word.strip()) for word in words))
    if not found.clear_at <= found.raise_at:
        raise ValueError("must not clear over where it is raised")
    return found


def _gpu_sets(raw: str) -> str:
    if raw != NONE:
        parse_sets(raw)
    return raw


def _level(raw: str) -> str:
    return _one_of("DEBUG", "INFO", "WARNING", "ERROR")(raw.upper())


def _listen(raw: str) -> str:
    if not raw:
        return ""
    host, port = split_address(raw)
    if host != "vpn" and not is_loopback(host):
        raise ValueError("must be vpn:PORT or a loopback address with its port")
    return f"{host}:{port}"


def _addresses(raw: str) -> tuple[str, ...]:
    try:
        found = tuple(str(ipaddress.IPv4Address(word)) for word in _patterns(raw))
    except ValueError:
        raise ValueError("must be IPv4 addresses such as 1.1.1.1,9.9.9.9") from None
    if any(is_loopback(address) for address in found):
        raise ValueError("must be addresses that a container reaches: it has a loopback of its own")
    return found


def _patterns(raw: str) -> tuple[str, ...]:
    words = tuple(word for word in re.split(r"[,\s]+", raw) if word)
    for word in words:
        try:
            read_pattern(word)
        except ImageNameError as err:
            raise ValueError(f"holds {word[:80]!r}, which {err}") from err
    return words


SETTINGS = (
    Setting("MASTER_NODE_URL", "master_url", "", _url, "the master's address, https://…"),
    Setting(
        "MASTER_JOIN_TOKEN", "join_token", "", _token, "the token that the master's owner gave"
    ),
    Setting("NODE_NAME", "node_name", "", _text, "this node's name for people; empty: the host's"),
    Setting(
        "RESOURCE_REPORT_INTERVAL", "report_interval_s", "30", _seconds, "seconds between reports"
    ),
    Setting("LOG_LEVEL", "log_level", "INFO", _level, "DEBUG, INFO, WARNING or ERROR"),
    Setting("DOCKER_HOST", "docker_host", "unix:///var/run/docker.sock", _text, "Docker's socket"),
    Setting(
        "TASK_IMAGE", "task_image", "justin308/hivemind-worker", _image,
        "the image of tasks that name none",
    ),
    Setting(
        "ALLOWED_IMAGES", "allowed_images", "*", _patterns,
        "which images may run; see Images",
    ),
    Setting(
        "IMAGE_DISK_PCT", "image_disk_pct", "85", _percent,
        "pulled images go when Docker's disk is fuller; 100: never",
    ),
    Setting(
        "MAX_HELD_TASKS", "max_held_tasks", "100", _count, "tasks held at once, waiting ones too"
    ),
    Setting(
        "RESERVED_CPUS", "reserved_cpus", "", _cpus,
        "cores kept for the owner; empty: a tenth of them",
    ),
    Setting(
        "RESERVED_MEMORY", "reserved_memory_bytes", "", _size,
        "memory kept for the owner; empty: a tenth, at least 512m",
    ),
    Setting("EGRESS", "egress", "on", _switch, "on: tasks that ask for the network may have it"),
    Setting(
        "EGRESS_DNS", "egress_dns", "", _addresses,
        "resolvers of tasks with network; empty: the host's own",
    ),
    Setting(
        "PIP_INDEX_URL", "pip_index_url", "", _index,
        "the index of requirements; empty: pip's own",
    ),
    Setting("PIP_EXTRA_INDEX_URL", "pip_extra_index_url", "", _indexes, "more such indexes"),
    Setting("PIP_PROXY", "pip_proxy", "", _index, "the proxy on the way there"),
    Setting("PIP_CERT", "pip_cert", "", _text, "a file of certificates; empty: the host's own"),
    Setting("SANDBOX", "sandbox", "runc", _one_of("runc", "runsc"), "the containers' runtime"),
    Setting(
        "TASK_LISTEN", "task_listen", "", _listen,
        "where the master may dial: vpn:PORT or a loopback address; empty: nowhere",
    ),
    Setting("VPN", "vpn", "auto", _one_of("auto", "off", "required"), "auto, off or required"),
    Setting(
        "WIREGUARD_CONFIG_PATH", "wireguard_config", "wg0.conf", _text, "the tunnel's configuration"
    ),
    Setting("WEB_LISTEN", "web", "127.0.0.1:5001", split_address, "where the page is served"),
    Setting("WEB_TOKEN", "web_token", "", _text, "needed where the page is not on loopback"),
    Setting(
        "GPU_SETS", "gpu_sets", "", _gpu_sets,
        "for `configure`: such as 0,1;2,3; empty: all GPUs in one set; none: no GPU",
    ),
    Setting(
        "ALERT_CPU", "alert_cpu", "95,85,60", _threshold,
        "% at which it is raised, and cleared; seconds that it must last; or off",
    ),
    Setting("ALERT_MEMORY", "alert_memory", "90,85,10", _threshold, "the same of memory"),
    Setting("ALERT_SWAP", "alert_swap", "80,70,60", _threshold, "of swap"),
    Setting("ALERT_DISK", "alert_disk", "95,92,0", _threshold, "of the home's file system"),
    Setting(
        "ALERT_IMAGE_DISK", "alert_image_disk", "95,92,0", _threshold,
        "of Docker's, where that is another",
    ),
    Setting(
        "ALERT_TEMPERATURE", "alert_temperature", "100,95,60", _threshold,
        "of the CPU, in °C, where there is a sensor",
    ),
    Setting(
        "ALERT_CPU_PRESSURE", "alert_cpu_pressure", "off", _threshold,
        "% of 10 s in which somebody waited for CPU (tasks at their limits always do)",
    ),
    Setting(
        "ALERT_MEMORY_PRESSURE", "alert_memory_pressure", "20,10,30", _threshold, "for memory"
    ),
    Setting("ALERT_IO_PRESSURE", "alert_io_pressure", "80,60,60", _threshold, "for a disk"),
    Setting(
        "ALERT_GPU_TEMPERATURE", "alert_gpu_temperature", "90,85,10", _threshold,
        "of a GPU, in °C",
    ),
    Setting(
        "ALERT_GPU_MEMORY", "alert_gpu_memory", "98,95,30", _threshold,
        "of a GPU's memory, in %",
    ),
    Setting(
        "DEBUG_RETENTION", "debug_retention_h", "24", _hours,
        "hours for which what is left of a failed task is kept; 0: not at all",
    ),
)  # fmt: skip
LOCATING = ("HIVEMIND_HOME", "HIVEMIND_CONFIG")  # where the rest is found: environment only
NAMES = frozenset(s.name for s in SETTINGS)


def find_home(environment: Mapping[str, str], directory: Path) -> Path:
    """`HIVEMIND_HOME`, else `var` beside the supervisor.conf in `directory` or above this file."""
    named = environment.get("HIVEMIND_HOME", "")
    if named:
        return Path(named).expanduser().absolute()
    for place in (directory, Path(__file__).parents[1]):
        if (place / "supervisor.conf").exists():
            return place.absolute() / "var"
    raise SettingsError("HIVEMIND_HOME is not set, and there is no supervisor.conf here")


def load(
    environment: Mapping[str, str], directory: Path, flags: Mapping[str, str] | None = None
) -> Settings:
    """Every setting from all sources; SettingsError with one clear line."""
    home = find_home(environment, directory)
    sources = (flags or {}, environment, read_file(_config_path(environment, home)))
    values: dict[str, Any] = {"home": home}
    for setting in SETTINGS:
        texts = (source.get(setting.name, "").strip() for source in sources)
        raw = next((text for text in texts if text), setting.default)
        try:
            values[setting.field] = setting.parse(raw)
        except ValueError as err:
            raise SettingsError(f"{setting.name}={_shown(setting, raw)} {err}") from err
    return _finish(values)


def _config_path(environment: Mapping[str, str], home: Path) -> Path | None:
    named = environment.get("HIVEMIND_CONFIG", "")
    if named:
        path = home / named
        if not path.is_file():
            raise SettingsError(f"HIVEMIND_CONFIG={named}: there is no such file as {path}")
        return path
    path = home / "worker.conf"
    return path if path.exists() else None


def _finish(values: dict[str, Any]) -> Settings:
    host, values["web_port"] = values.pop("web")
    values["web_host"] = host.strip("[]")  # as a socket wants it
    values["pip_cert"] = values["home"] / values["pip_cert"] if values["pip_cert"] else None
    values["wireguard_config"] = values["home"] / values["wireguard_config"]
    values["node_name"] = values["node_name"] or socket.gethostname()
    if not is_loopback(values["web_host"]) and not values["web_token"]:
        raise SettingsError("WEB_LISTEN is not a loopback address: set WEB_TOKEN too")
    return Settings(**values)


def _shown(setting: Setting, raw: str) -> str:
    if setting.name.endswith(("TOKEN", "INDEX_URL", "PROXY")):  # an address may hold a password
        return "…"
    return raw[:80] if raw.isprintable() else ascii(raw[:80])


def read_file(path: Path | None) -> dict[str, str]:
    """KEY=VALUE lines; `#` comments; one matching pair of quotes stripped; nothing expanded."""
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path} can't be read: {err}") from err
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, value = _read_line(line, f"{path}:{number}")
            if name in found:
                raise SettingsError(f"{path}:{number}: {name} is set twice")
            found[name] = value
    return found


def _read_line(line: str, place: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in line.partition("="))
    if not equals:
        raise SettingsError(f"{place}: must be KEY=VALUE")
    if name not in NAMES:
        raise SettingsError(f"{place}: there is no setting {name!r}; see README, Settings")
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return name, value


def default_table() -> Iterable[tuple[str, str, str]]:
    """(name, default, meaning) of each setting, for the README and `--help`."""
    yield "HIVEMIND_HOME", "var beside supervisor.conf", "where everything is kept"
    yield "HIVEMIND_CONFIG", "worker.conf in the home", "a file of KEY=VALUE lines"
    for setting in SETTINGS:
        yield setting.name, setting.default, setting.meaning
