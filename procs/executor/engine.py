"""The one door to Docker. Its library and its errors end here.

`EngineAwayError`: no answer; a state of the node, never a task's result.
`EngineRefusedError`: an answer that says no; `NotThereError`: there is no such thing.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Protocol, TypeVar

import docker
import docker.auth
import docker.errors
import requests
import urllib3
from docker.errors import (
    APIError,
    DockerException,
    InvalidRepository,
    NotFound,
    NullResource,
    StreamParseError,
)

from procs.executor.docker_wire import SaidNoError, Wire
from procs.executor.sandbox import LABEL_ATTEMPT, LABEL_HOME, LABEL_LAYER, LABEL_TASK, Image
from shared.images import ImageNameError, Reference, read_image
from shared.taskdir import TaskKey
from shared.tasks_group import PARENTS

CALL_S = 60  # a start on a loaded host takes seconds; past this the engine counts as away
SIGNAL_S = 10  # past this it is sent through the kernel
BRIDGE_NAME = "com.docker.network.bridge.name"  # the option that names a network's interface
NOTICE_S = 5  # by then it has noticed that a container of its own has ended
PING_S = 1.5  # with PING_EACH_S of watch.py: an engine that hangs is known within 3 s
ABOUT_S = 10  # asked by the thread that pings, which must be free again soon
PULL_SILENCE_S = 120  # as long as nothing may move, see pulls.py: then its thread ends too
NOTHING = "<none>"  # in Docker's lists: no repository, or no tag
MOST_WORDS = 500  # characters of what the engine says

T = TypeVar("T")


class EngineAwayError(Exception):
    """Docker does not answer."""


class EngineRefusedError(Exception):
    """Docker answered, and says no; the text is its own."""


class NotThereError(EngineRefusedError):
    """There is no such container or image."""


@dataclass(frozen=True)
class Seen:
    """A container of ours in Docker's list."""

    key: TaskKey
    container_id: str
    state: str  # created, running, paused, exited, dead, …


@dataclass(frozen=True)
class Installing:
    """A container that installs requirements, in Docker's list."""

    container_id: str
    name: str
    state: str


@dataclass(frozen=True)
class Exit:
    """How Docker thinks that a container ended."""

    code: int
    out_of_memory: bool


@dataclass(frozen=True)
class Network:
    """A network in Docker; `users` are the running containers on it."""

    name: str
    labels: dict[str, str]
    bridge: str
    users: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocalImage:
    """An image that the engine has; one without a tag may still have digests."""

    image_id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class About:
    """The engine itself."""

    version: str
    runtimes: tuple[str, ...]
    data_root: str = ""  # where it keeps its images, on its own machine


class PullStream(Protocol):
    """A pull under way. It ends with its last line, or when nobody listens any more."""

    def lines(self) -> Iterator[dict[str, Any]]: ...
    def end(self) -> None:
        """From any thread: `lines` ends, or raises EngineAwayError."""


class Engine(Protocol):
    """What the executor needs of a container engine. Every call may raise the errors above."""

    def about(self) -> About: ...
    def ping(self) -> None: ...
    def image(self, name: str) -> Image: ...
    def pull(self, name: str) -> PullStream: ...
    def images(self) -> list[LocalImage]: ...
    def images_in_use(self) -> set[str]: ...
    def remove_image(self, reference: str) -> None: ...
    def create(self, name: str, body: dict[str, Any]) -> str: ...
    def start(self, container: str) -> None: ...
    def signal(self, container: str, signal: str) -> None: ...
    def remove(self, container: str) -> None: ...
    def stop_signal(self, container: str) -> str: ...
    def exit_of(self, container: str) -> Exit: ...
    def inspect(self, container: str) -> dict[str, Any]: ...
    def last_state(self, container: str) -> dict[str, Any]: ...
    def seen(self, home: str) -> list[Seen]: ...
    def installing(self, home: str) -> list[Installing]: ...
    def deaths(self, home: str) -> Iterator[TaskKey]: ...
    def networks(self, home: str) -> list[str]: ...
    def network(self, name: str) -> Network: ...
    def make_network(self, name: str, labels: dict[str, str], options: dict[str, str]) -> None: ...


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SaidNoError as err:
        kind = NotThereError if err.status == HTTPStatus.NOT_FOUND else EngineRefusedError
        raise kind(_short(err.words)) from err
    except NotFound as err:
        raise NotThereError(_words(err)) from err
    except APIError as err:
        raise EngineRefusedError(_words(err)) from err
    except (InvalidRepository, NullResource) as err:  # said by the library: it asked nobody
        raise EngineRefusedError(_short(str(err))) from err
    except (
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        DockerException,
        StreamParseError,  # it died in the middle of a line
        HTTPException,
        OSError,
    ) as err:
        raise EngineAwayError(_short(f"Docker does not answer: {err}")) from err


def _parsed(said: bytes, kind: type[T]) -> T:
    """No sense in it counts as no answer: it was cut, or is of something that is no engine."""
    try:
        found = json.loads(said)
    except ValueError as err:
        raise EngineAwayError(_short(f"Docker's answer can't be read: {err}")) from err
    if not isinstance(found, kind):
        raise EngineAwayError(f"Docker's answer is no {kind.__name__}")
    return found


def _words(err: APIError) -> str:
    return _short(str(err.explanation or err))


def _short(words: str) -> str:
    """They go over the bus and into the report."""
    return words if len(words) <= MOST_WORDS else f"{words[:MOST_WORDS]} …"


class _DockerPull:
    def __init__(self, api: docker.APIClient, response: requests.Response) -> None:
        self._api = api
        self._response = response

    def lines(self) -> Iterator[dict[str, Any]]:
        try:
            with _translated():
                for text in filter(None, self._response.iter_lines()):
                    line: dict[str, Any] = json.loads(text)
                    if "error" in line:
                        raise EngineRefusedError(_short(str(line["error"])))
                    yield line
        except json.JSONDecodeError as err:  # it died in the middle of a line
            raise EngineAwayError(f"Docker's line can't be read: {err}") from err
        finally:
            self._response.close()
            self._api.close()

    def end(self) -> None:
        with suppress(RuntimeError, OSError):  # it has ended already
            self._response.raw.shutdown()


class DockerEngine:
    """Docker. Connects at the first call; safe to use from several threads."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._client: docker.APIClient | None = None
        self._wire = Wire(host)
        self._cgroup_parent = ""  # until it has said which driver it has

    def _api(self) -> docker.APIClient:
        if self._client is None:
            self._client = docker.APIClient(base_url=self._host, version="auto", timeout=CALL_S)
            self._client.trust_env = False  # looked up for each call, and a third of its cost
        return self._client

    def ping(self) -> None:
        with _translated():
            self._wire.call("GET", "_ping", timeout_s=PING_S)

    def about(self) -> About:
        with _translated():
            api = docker.APIClient(base_url=self._host, version="auto", timeout=ABOUT_S)
            info = api.info()
            api.close()
        self._cgroup_parent = PARENTS.get(info.get("CgroupDriver", ""), "")
        runtimes = tuple(sorted(info.get("Runtimes") or {}))
        return About(
            str(info.get("ServerVersion", "")), runtimes, str(info.get("DockerRootDir", ""))
        )

    def _looked_at(self, *path: str) -> dict[str, Any]:
        with _translated():
            return _parsed(self._wire.call("GET", *path, timeout_s=CALL_S), dict)

    def image(self, name: str) -> Image:
        wanted = _read(name)
        found = self._looked_at("images", *wanted.name.split("/"), "json")
        config = found.get("Config") or {}
        return Image(
            digest=found["Id"],
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            environment=tuple(config.get("Env") or ()),
            volumes=tuple(config.get("Volumes") or ()),
            stop_signal=config.get("StopSignal") or "",
            registry_digest=_registry_digest(wanted, found.get("RepoDigests") or ()),
        )

    def pull(self, name: str) -> PullStream:
        """Begin to fetch an image; returns when the registry has told what it consists of."""
        image = _read(name)
        with _translated():
            api = docker.APIClient(base_url=self._host, version="auto", timeout=PULL_SILENCE_S)
            login = _login(api, image)
            response = api.post(
                f"{api.base_url}/v{api.api_version}/images/create",
                params={"fromImage": image.repository, "tag": image.version},
                headers={"X-Registry-Auth": login} if login else {},
                stream=True,
                timeout=PULL_SILENCE_S,
            )
            try:
                response.raise_for_status()
            except requests.HTTPError as err:
                raise docker.errors.create_api_error_from_http_exception(err) from err
        return _DockerPull(api, response)

    def images(self) -> list[LocalImage]:
        with _translated():
            rows = self._api().images()
        return [
            LocalImage(
                row["Id"],
                tuple(tag for tag in row.get("RepoTags") or () if NOTHING not in tag),
                tuple(digest for digest in row.get("RepoDigests") or () if NOTHING not in digest),
            )
            for row in rows
        ]

    def images_in_use(self) -> set[str]:
        """Ids of the images that any container has, running or not."""
        with _translated():
            return {row["ImageID"] for row in self._api().containers(all=True)}

    def remove_image(self, reference: str) -> None:
        """Without force; one that is not there is removed already."""
        with suppress(NotThereError), _translated():
            self._api().remove_image(reference)

    def create(self, name: str, body: dict[str, Any]) -> str:
        """Create the container; the id. EngineRefusedError when the name is taken. It runs in the
        group of all tasks (parent.py), which the engine names by its driver."""
        host = {**body["HostConfig"], "CgroupParent": self._cgroup_parent}
        made = {**body, "HostConfig": host}
        with _translated():
            said = self._wire.call(
                "POST", "containers", "create", timeout_s=CALL_S, body=made, name=name
            )
        return str(_parsed(said, dict)["Id"])

    def start(self, container: str) -> None:
        with _translated():
            self._wire.call("POST", "containers", container, "start", timeout_s=CALL_S)

    def signal(self, container: str, signal: str) -> None:
        with _translated():
            self._wire.call(
                "POST", "containers", container, "kill", timeout_s=SIGNAL_S, signal=signal
            )

    def remove(self, container: str) -> None:
        """Remove it, running or not; one that is not there is removed already."""
        try:
            with _translated():
                self._wire.call(
                    "DELETE", "containers", container, timeout_s=CALL_S, v="1", force="1"
                )
        except NotThereError:
            return

    def stop_signal(self, container: str) -> str:
        return str(self.inspect(container)["Config"].get("StopSignal") or "SIGTERM")

    def exit_of(self, container: str) -> Exit:
        state = self.inspect(container)["State"]
        return Exit(int(state.get("ExitCode", 0)), bool(state.get("OOMKilled")))

    def inspect(self, container: str) -> dict[str, Any]:
        """All that the engine says of it; no secret is among that."""
        return self._looked_at("containers", container, "json")

    def last_state(self, container: str) -> dict[str, Any]:
        """`inspect`, once the engine has noticed that it has ended."""
        with _translated(), suppress(TimeoutError):
            self._wire.call("POST", "containers", container, "wait", timeout_s=NOTICE_S)
        return self.inspect(container)

    def seen(self, home: str) -> list[Seen]:
        """Every container that carries this home's label."""
        filters = json.dumps({"label": [f"{LABEL_HOME}={home}"]})
        with _translated():
            said = self._wire.call(
                "GET", "containers", "json", timeout_s=CALL_S, all="1", filters=filters
            )
        found = ((_key(row.get("Labels") or {}), row) for row in _parsed(said, list))
        return [Seen(key, row["Id"], row["State"]) for key, row in found if key]

    def installing(self, home: str) -> list[Installing]:
        """This home's containers that install requirements; not a task's, which has its image's
        labels too."""
        with _translated():
            labels = [f"{LABEL_HOME}={home}", LABEL_LAYER]
            rows = self._api().containers(all=True, filters={"label": labels})
        rows = [row for row in rows if not row["Labels"].get(LABEL_TASK)]
        names = (next(iter(row.get("Names") or [""])).lstrip("/") for row in rows)
        return [Installing(row["Id"], n, row["State"]) for row, n in zip(rows, names, strict=True)]

    def networks(self, home: str) -> list[str]:
        """The names of this home's networks."""
        with _translated():
            rows = self._api().networks(filters=_ours(home))
        return [str(row["Name"]) for row in rows]

    def network(self, name: str) -> Network:
        with _translated():
            found = self._api().inspect_network(name)
        return Network(
            name=found["Name"],
            labels=found.get("Labels") or {},
            bridge=(found.get("Options") or {}).get(BRIDGE_NAME, ""),
            users=tuple(one.get("Name", "") for one in (found.get("Containers") or {}).values()),
        )

    def make_network(self, name: str, labels: dict[str, str], options: dict[str, str]) -> None:
        """A bridge without IPv6. EngineRefusedError when the name is taken, or no address left."""
        with _translated():
            self._api().create_network(
                name, driver="bridge", options=options, labels=labels, check_duplicate=True
            )

    def deaths(self, home: str) -> Iterator[TaskKey]:
        """The keys of our containers as they die, from now on: the engine listens once this
        returns. Ends, or raises, when the engine goes away."""
        with _translated():
            api = docker.APIClient(base_url=self._host, version="auto", timeout=None)  # type: ignore[arg-type]
            return _deaths(api.events(filters={**_ours(home), "event": "die"}, decode=True))


def _deaths(events: Iterable[dict[str, Any]]) -> Iterator[TaskKey]:
    with _translated():
        for event in events:
            if key := _key(event["Actor"]["Attributes"]):
                yield key


def _ours(home: str) -> dict[str, Any]:
    return {"label": f"{LABEL_HOME}={home}"}


def _key(labels: dict[str, str]) -> TaskKey | None:
    return TaskKey.parse(f"{labels.get(LABEL_TASK, '')}.{labels.get(LABEL_ATTEMPT, '')}")


def _login(api: docker.APIClient, image: Reference) -> bytes | None:
    """Of `docker login`, for the registry; None: there is none."""
    registry, _ = docker.auth.resolve_repository_name(image.repository)
    try:
        return docker.auth.get_config_header(api, registry)
    except DockerException as err:  # its helper is missing, or fails: the engine is there
        raise EngineRefusedError(f"its registry's login can't be read: {err}") from err


def _read(name: str) -> Reference:
    try:
        return read_image(name)
    except ImageNameError as err:
        raise EngineRefusedError(f"it {err}") from err


def _registry_digest(wanted: Reference, digests: Iterable[str]) -> str:
    """As the registry has it that the image was asked of; an image may be in several."""
    for text in digests:
        with suppress(ImageNameError):
            found = read_image(text)
            same = (found.host, found.path) == (wanted.host, wanted.path)
            if same and wanted.digest in ("", found.digest):
                return found.name
    return ""
