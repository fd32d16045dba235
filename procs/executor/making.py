"""Making an attempt ready: image, inputs, claim, container. A job, blocking, in a thread.

It can be killed at any point and done again: what it finds on disk and in the engine decides. What
is still on its way is an outcome, never waited for here.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

from procs.executor import cgroup
from procs.executor.attempt import Attempt, Outcome
from procs.executor.claim import AlreadyRanError, Start, settle, write_claim
from procs.executor.core import Event, Wait
from procs.executor.engine import Engine, EngineAwayError, EngineRefusedError, NotThereError
from procs.executor.layers import Layers, layer_name
from procs.executor.made import Made, write_made
from procs.executor.networks import NO_NETWORK, NetworkError, Networks, NetworkWaitError, Taken
from procs.executor.notes import write_grant
from procs.executor.prepare import InputError, lay_out, missing
from procs.executor.quota import Grant
from procs.executor.sandbox import (
    LABEL_HOME,
    TASK_GID,
    TASK_UID,
    Image,
    Place,
    argv,
    container,
    environment,
    with_requirements,
)
from shared import sentences
from shared.files import NO_ROOM, remove_tree
from shared.images import image_refusal
from shared.requirements import normalised
from shared.taskdir import OUTPUT, SECRETS

MOST_PULLS = 3  # of one image for one attempt: someone may remove it each time


class Making:
    """The job of one worker; safe in any thread, since each attempt's lane has one at a time."""

    def __init__(
        self,
        engine: Engine,
        home: Path,
        keeper: Path,
        runtime: str,
        networks: Networks | None,
        layers: Layers,
        allowed_images: tuple[str, ...],
    ) -> None:
        self._engine = engine
        self._networks, self._layers = networks, layers
        self._home = home
        self._keeper = keeper
        self._runtime = runtime
        self._allowed_images = allowed_images
        self.node_id = ""

    def prepare(self, attempt: Attempt) -> Outcome:
        """Image, inputs, claim, container."""
        granted = attempt.grant
        if granted is None:
            raise ValueError(f"{attempt.key.directory} was given no resources")
        image = self._image(attempt)
        if isinstance(image, Outcome):
            return image
        given = self._with_layer(attempt, image, granted)
        if isinstance(given, Outcome):
            return given
        return self._make_ready(attempt, image, given)

    def _make_ready(self, attempt: Attempt, image: Image, granted: Grant) -> Outcome:
        try:
            taken = self._gather(attempt)
            if isinstance(taken, Outcome):
                return taken
            granted = replace(granted, network=taken.name)
            lay_out(attempt.directory, attempt.spec, granted.disk_bytes)
            return self._make_container(attempt, image, granted, taken.resolvers)
        except InputError as err:
            return Outcome.not_prepared(err.said)
        except EngineAwayError as err:  # a container of another id may be made yet
            return Outcome(Event.ENGINE_LOST, container_id="", detail=str(err))
        except EngineRefusedError as err:
            return self._not_made(attempt, err)
        except AlreadyRanError as err:
            return Outcome.not_prepared(sentences.RAN_BEFORE.say(words=err))
        except OSError as err:
            return _not_laid_out(err)

    def _not_made(self, attempt: Attempt, err: EngineRefusedError) -> Outcome:
        gone = self._image(attempt)  # someone may have removed it meanwhile
        if isinstance(gone, Outcome):
            return gone
        if isinstance(err, NotThereError):  # removed, and come again for another task
            return _missed(attempt, err)
        return Outcome.not_prepared(sentences.CONTAINER_NOT_MADE.say(words=err))

    def _with_layer(self, attempt: Attempt, image: Image, granted: Grant) -> Grant | Outcome:
        """What it was given, with its installed requirements."""
        if not attempt.spec.requirements:
            return granted
        try:
            lines = normalised(attempt.spec.requirements)
        except ValueError as err:  # refused at admission, unless its spec is older
            return Outcome.not_prepared(sentences.REQUIREMENTS_NOT_INSTALLED.say(words=err))
        granted = replace(granted, layer=layer_name(lines, image.digest))
        try:
            if self._layers.hold(granted.layer, attempt.key):
                return granted
        except OSError as err:
            return Outcome.not_prepared(sentences.REQUIREMENTS_NODE.say(words=err))
        return Outcome(
            Event.MISSED, Wait.LAYER, detail="waiting for its requirements",
            grant=granted, image_digest=image.reported, image=image,
        )  # fmt: skip

    def _image(self, attempt: Attempt) -> Image | Outcome:
        name = attempt.spec.image
        if image_refusal(name, self._allowed_images):  # the owner's word of now, not of then
            return Outcome.not_prepared(sentences.IMAGE_DISALLOWED.say(image=name))
        try:
            return self._engine.image(name)
        except NotThereError as err:
            return _missed(attempt, err)
        except EngineRefusedError as err:
            return Outcome.not_prepared(sentences.IMAGE_UNUSABLE.say(image=name, words=err))
        except EngineAwayError as err:
            return Outcome(Event.ENGINE_LOST, detail=str(err))

    def _gather(self, attempt: Attempt) -> Taken | Outcome:
        """What may still be on its way: its inputs, then its network."""
        if missing(attempt.directory, attempt.spec):
            return Outcome(Event.MISSED, Wait.INPUTS, detail="waiting for its input")
        if not attempt.spec.egress:
            return NO_NETWORK
        if self._networks is None:
            return Outcome.not_prepared(sentences.EGRESS_TURNED_OFF.say())
        try:
            return self._networks.take(attempt.key)
        except NetworkWaitError as err:
            return Outcome(Event.MISSED, Wait.NETWORK, detail=str(err))
        except NetworkError as err:
            return Outcome.not_prepared(err.said)

    def _make_container(
        self, attempt: Attempt, image: Image, granted: Grant, resolvers: tuple[str, ...]
    ) -> Outcome:
        words = argv(image, attempt.spec.command)
        if not words:
            return Outcome.not_prepared(sentences.COMMAND_MISSING.say(image=attempt.spec.image))
        try:
            start = self._start(attempt, image, words, granted)
        except ValueError as err:  # the image adds its own: admission could not know
            return Outcome.not_prepared(sentences.COMMAND_INVALID.say(fault=err))
        place = Place(attempt.key, attempt.directory, self._home, self.node_id, self._keeper)
        granted = replace(granted, image_digest=image.reported, pull_s=attempt.pull_s)
        write_grant(attempt.directory, granted)
        self._make_output(attempt.directory / OUTPUT)
        if attempt.may_have_container:  # of a start that was settled
            remove(self._engine, attempt)
            cgroup.kill(attempt.container_id)  # an engine that died in a start forgets what it made
        body = container(place, image, granted, self._runtime, resolvers)
        made = Made(
            container_id=self._create(attempt, body, start),
            stop_signal=image.stop_signal or "SIGTERM",
        )
        write_made(attempt.directory, made)
        return Outcome(
            Event.PREPARED,
            grant=granted,
            container_id=made.container_id,
            image_digest=image.reported,
            stop_signal=made.stop_signal,
        )

    def _make_output(self, output: Path) -> None:
        """Empty: nothing that ran has written there yet."""
        remove_tree(output)
        output.mkdir(mode=0o755)
        output.chmod(0o755)
        _give_to_task(output)

    def _start(
        self, attempt: Attempt, image: Image, words: tuple[str, ...], granted: Grant
    ) -> Start:
        spec = attempt.spec
        secrets: dict[str, str] = {}
        if spec.secret_names:
            secrets = json.loads((attempt.directory / SECRETS).read_bytes())
        given = environment(image, spec.environment, secrets)
        return Start(
            argv=words,
            environment=with_requirements(given) if granted.layer else given,
            log_limit_bytes=spec.log_limit_bytes,
            file_limit_bytes=granted.disk_bytes,
        )

    def _create(self, attempt: Attempt, body: dict[str, object], start: Start) -> str:
        """Make the claim and the container; one of that name that never ran is replaced."""
        name = attempt.container_name
        write_claim(attempt.directory, start, TASK_UID, TASK_GID)
        try:
            return self._engine.create(name, body)
        except EngineRefusedError:
            if not settle(attempt.directory) or not _is_ours(self._engine, attempt):
                raise
            self._engine.remove(name)
        write_claim(attempt.directory, start, TASK_UID, TASK_GID)
        return self._engine.create(name, body)


def remove(engine: Engine, attempt: Attempt) -> None:
    """Its container; what a create that nobody answered has made is known by its name alone."""
    if attempt.container_id or _is_ours(engine, attempt):
        engine.remove(attempt.container)


def _is_ours(engine: Engine, attempt: Attempt) -> bool:
    """Another's of that name is left alone, whatever it is."""
    try:
        labels = engine.inspect(attempt.container_name)["Config"].get("Labels") or {}
    except NotThereError:
        return True
    return labels.get(LABEL_HOME) == str(attempt.home)


def _missed(attempt: Attempt, err: NotThereError) -> Outcome:
    if attempt.pulls >= MOST_PULLS:
        said = sentences.IMAGE_VANISHED.say(image=attempt.spec.image, words=err)
        return Outcome.not_prepared(said)
    return Outcome(Event.MISSED, Wait.IMAGE, detail="waiting for its image")


def _not_laid_out(err: OSError) -> Outcome:
    if err.errno in NO_ROOM:  # a state of the node, not the task's end
        return Outcome(Event.NO_ROOM, detail=f"waiting for room on the disk: {err}")
    return Outcome.not_prepared(sentences.DIRECTORIES_NOT_MADE.say(words=err))


def _give_to_task(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, TASK_UID, TASK_GID)
    else:
        path.chmod(0o777)  # not root: the home's own mode keeps others out
