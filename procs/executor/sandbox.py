"""The walls around a task: a pure function from a task to Docker's configuration.

Every line has its reason. Nothing here is configurable by a task beyond its granted limits.
"""

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procs.executor import gpus
from procs.executor.quota import LEAST_BYTES, Grant
from shared.egress import names
from shared.taskdir import CLAIM, INPUT, LAYERS, MIB, OUTPUT, SITE, TaskKey

TASK_UID = TASK_GID = 65534  # nobody: no image decides to run as root
CPU_PERIOD_US = 100_000  # period and quota, not nano_cpus: those can't be changed live
OPEN_FILES = 4096
OOM_SCORE_ADJ = 500  # the kernel ends a task before the worker or the owner's programs
KEEPER_EXTRA_PIDS = 1  # the keeper itself
GVISOR = "runsc"  # the runtime whose containers have a kernel of their own
GVISOR_EXTRA_PIDS = 256  # its own threads count; where they find no room it panics
CLAIM_AT, KEEPER_AT, TASK_AT, OUTPUT_AT = "/.hivemind", "/.keeper", "/task", "/output"
RESOLV_AT = "/etc/resolv.conf"
NO_IPV6 = ("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6")
HAS_IPV6 = Path("/proc/sys/net/ipv6").exists()  # else there is nothing to close
REQUIREMENTS_AT = "/requirements"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # the keeper's too

LABEL_TASK, LABEL_ATTEMPT, LABEL_NODE = "hivemind.task", "hivemind.attempt", "hivemind.node"
LABEL_LAYER = "hivemind.layer"  # on the container that installs requirements
LABEL_HOME = "hivemind.home"  # whose records prove what became of it: two workers, one engine


@dataclass(frozen=True)
class Image:
    """What an image says of itself. `digest` pins it here."""

    digest: str
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    registry_digest: str = ""  # with its repository; empty: it came from no registry

    @property
    def reported(self) -> str:
        """What it is called where it is no more."""
        return self.registry_digest or self.digest


@dataclass(frozen=True)
class Place:
    """Where the attempt lies on the host, and whose it is."""

    key: TaskKey
    directory: Path
    home: Path
    node_id: str
    keeper: Path


def container_name(key: TaskKey, home: Path) -> str:
    """With the worker's own digits: another one on the same engine may run the same task."""
    return f"hivemind-{key.task_id}-{key.attempt}-{names(home).digits}"


def labels(place: Place) -> dict[str, str]:
    return {
        LABEL_TASK: place.key.task_id,
        LABEL_ATTEMPT: str(place.key.attempt),
        LABEL_NODE: place.node_id,
        LABEL_HOME: str(place.home),
    }


def argv(image: Image, command: tuple[str, ...]) -> tuple[str, ...]:
    """The entry point, then the task's command or else the image's, as `docker run` has it."""
    return image.entrypoint + (command or image.command)


def environment(
    image: Image, given: Mapping[str, str], secrets: Mapping[str, str]
) -> dict[str, str]:
    """The image's own, then what the assignment gave; nothing of the worker's."""
    own = dict(line.split("=", 1) for line in image.environment if "=" in line)
    return {**own, **given, **secrets}


def with_requirements(environment: Mapping[str, str]) -> dict[str, str]:
    """Python finds them before what the image has; their programs come after the image's."""
    python_path = environment.get("PYTHONPATH", "")
    return {
        **environment,
        "PYTHONPATH": f"{REQUIREMENTS_AT}:{python_path}" if python_path else REQUIREMENTS_AT,
        "PATH": f"{environment.get('PATH') or DEFAULT_PATH}:{REQUIREMENTS_AT}/bin",
    }


def container(
    place: Place, image: Image, grant: Grant, runtime: str, resolvers: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The body of Docker's create call. With resolvers: resolv_conf(…) is there, and holds them."""
    host = _host(place, image, grant, runtime) | network(grant.network, resolvers)
    if resolvers:
        host["Mounts"] += [bind(resolv_conf(place.home, resolvers), RESOLV_AT, read_only=True)]
    return {
        "Image": image.digest,  # pinned: the tag may move
        "Entrypoint": [KEEPER_AT],
        "Cmd": [CLAIM_AT],  # the command, its environment and secrets are not for `inspect`
        "Env": _environment(image, grant),
        "User": f"{TASK_UID}:{TASK_GID}",
        "Labels": labels(place),
        "Healthcheck": {"Test": ["NONE"]},  # an image's own would run outside the keeper
        "StopSignal": image.stop_signal or "SIGTERM",
        "NetworkDisabled": not grant.network,
        "OpenStdin": runtime == GVISOR,  # a pipe: it would chown the host's /dev/null to the task
        "Tty": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "HostConfig": host,
    }


def _environment(image: Image, grant: Grant) -> list[str]:
    """Against what the image sets: a name alone takes it away. The keeper gives it to the command;
    a runtime's hooks, which run as root, would load what an LD_PRELOAD of the image's names."""
    own = gpus.environment(grant.gpus)
    known = {line.split("=", 1)[0] for line in own}
    names = dict.fromkeys(line.split("=", 1)[0] for line in image.environment)
    return [*own, *(name for name in names if name not in known)]


def _host(place: Place, image: Image, grant: Grant, runtime: str) -> dict[str, Any]:
    memory = max(grant.memory_bytes, LEAST_BYTES)
    mounts = _mounts(place, grant)
    return {
        "Runtime": runtime,
        "DeviceRequests": gpus.requests(grant.gpus),
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],  # seccomp: Docker's default profile stays
        "Privileged": False,
        "ReadonlyRootfs": True,
        "IpcMode": "private",
        "Memory": memory,
        "MemorySwap": memory,  # equal: no swap, so the limit is exact
        "CpuPeriod": CPU_PERIOD_US,
        "CpuQuota": max(int(grant.cpus * CPU_PERIOD_US), 1000),  # the kernel's least is 1 ms
        "PidsLimit": _pids(grant, runtime),
        "OomScoreAdj": OOM_SCORE_ADJ,
        "Ulimits": [
            {"Name": "core", "Soft": 1, "Hard": 1},  # it would hold secrets; 1: no pipe either
            {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES},
        ],
        "ShmSize": min(64 * MIB, memory // 2),
        "Tmpfs": _tmpfs(image, memory // 2, {mount["Target"] for mount in mounts}),
        "Mounts": mounts,
        "LogConfig": {"Type": "none"},  # the keeper writes the log
        "RestartPolicy": {"Name": "no"},  # a task never runs twice
        "AutoRemove": False,  # until its end is known
        "Init": False,  # the keeper is PID 1
    }


def network(name: str, resolvers: tuple[str, ...]) -> dict[str, Any]:
    """Of the host's configuration, for a bridge that the firewall covers; "": none at all."""
    if not name:
        return {"NetworkMode": "none"}
    return {
        "NetworkMode": name,
        "Dns": list(resolvers),  # for Docker's resolver, which a task could ask at 127.0.0.11
        "DnsSearch": ["."],  # none: the host's would tell its domain
        "DnsOptions": [],
        "ExtraHosts": [],
        "Sysctls": dict.fromkeys(NO_IPV6, "1") if HAS_IPV6 else {},
    }


def resolv_conf(home: Path, resolvers: tuple[str, ...]) -> Path:
    """Mounted over Docker's, whose resolver is dead while the engine is, and unknown to gVisor."""
    return home / "run" / f"resolv-{'-'.join(resolvers)}.conf"


def _pids(grant: Grant, runtime: str) -> int:
    return grant.processes + (GVISOR_EXTRA_PIDS if runtime == GVISOR else KEEPER_EXTRA_PIDS)


def _tmpfs(image: Image, size: int, own: Collection[str]) -> dict[str, str]:
    """/tmp and each volume of the image's that is not a place of ours: sized, and counted as the
    task's memory. Docker would give it a volume on the host's disk, without a limit."""
    options = f"rw,nosuid,nodev,size={size},mode=1777"
    paths = ("/tmp", *(path for v in image.volumes if (path := _cleaned(v)) not in own))
    return dict.fromkeys(paths, options)


def _cleaned(path: str) -> str:
    """As Docker writes it: /a for a/, //a and /b/../a."""
    return posixpath.normpath(f"/{path.lstrip('/')}")


def _mounts(place: Place, grant: Grant) -> list[dict[str, Any]]:
    """The task's own directories, the keeper, its requirements; no other path of the host."""
    mounts = [
        bind(place.directory / CLAIM, CLAIM_AT, read_only=False),
        bind(place.directory / OUTPUT, OUTPUT_AT, read_only=False),
        bind(place.directory / INPUT, TASK_AT, read_only=True),
        bind(place.keeper, KEEPER_AT, read_only=True),
    ]
    if grant.layer:
        site = place.home / LAYERS / grant.layer / SITE
        mounts.append(bind(site, REQUIREMENTS_AT, read_only=True))
    return mounts


def bind(source: Path, target: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }
