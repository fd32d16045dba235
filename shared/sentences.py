"""Every sentence with which this node refuses an assignment or ends a task without success: what
happened, then what to do. One table; README's is printed from it.

No other text reaches a master as a reason or an error: who refuses or ends a task says a sentence
from here. A new one is an entry here and nothing else; one that nobody says is removed.
"""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from shared.messages import TaskPhase

MOST_CHARACTERS = 600  # it rides on the bus, and is read by a person
CUT = " …"


class Refusal(StrEnum):
    """The contract's Refusal without its prefix."""

    INVALID = "INVALID"
    TOO_LARGE = "TOO_LARGE"
    BUSY = "BUSY"
    DRAINING = "DRAINING"
    FORBIDDEN = "FORBIDDEN"


class Cause(StrEnum):
    """The contract's FailureCause in lower case, without its prefix; NONE: it is not FAILED."""

    NONE = ""
    EXIT = "exit"
    START = "start"
    IMAGE = "image"
    INPUT = "input"
    DEPENDENCIES = "dependencies"
    INTERRUPTED = "interrupted"
    REMOVED = "removed"
    NODE = "node"


C = TypeVar("C", Refusal, TaskPhase)


@dataclass(frozen=True)
class Sentence(Generic[C]):
    """`what` happened and what `to_do`, with the names of the values that they are said with."""

    code: C
    what: str
    to_do: str
    cause: Cause = Cause.NONE

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(name for _, name, _, _ in string.Formatter().parse(self._whole) if name)

    @property
    def _whole(self) -> str:
        return f"{self.what}; {self.to_do}"

    def say(self, **values: object) -> "Said[C]":
        """One printable line of at most MOST_CHARACTERS; values are cut, never the advice."""
        if values.keys() != self.fields:
            raise ValueError(f"{self.what!r} is said with {sorted(self.fields)}")
        room = MOST_CHARACTERS - len(self._whole.format_map(dict.fromkeys(values, "")))
        return Said(self, self._whole.format_map(dict(_fitted(values, room))))


@dataclass(frozen=True)
class Said(Generic[C]):
    """A sentence with its values."""

    sentence: Sentence[C]
    text: str

    @property
    def code(self) -> C:
        return self.sentence.code

    @property
    def cause(self) -> Cause:
        return self.sentence.cause

    def __str__(self) -> str:
        return self.text


def _fitted(values: dict[str, object], room: int) -> Iterator[tuple[str, str]]:
    """Share the room out: short values whole, long ones cut."""
    plain = sorted(((n, _plain(v)) for n, v in values.items()), key=lambda item: len(item[1]))
    for number, (name, text) in enumerate(plain):
        share = room // (len(plain) - number)
        yield name, text if len(text) <= share else text[: share - len(CUT)] + CUT
        room -= min(len(text), share)


def _plain(value: object) -> str:
    """One line that can be shown: values come from strangers."""
    text = " ".join(str(value)[: 2 * MOST_CHARACTERS].split())
    return re.sub(r"[.;,:]+$", "", "".join(c if c.isprintable() else "?" for c in text))


def _refused(code: Refusal, what: str, to_do: str) -> Sentence[Refusal]:
    return Sentence(code, what, to_do)


def _invalid(what: str, to_do: str) -> Sentence[Refusal]:
    return Sentence(Refusal.INVALID, what, to_do)


def _busy(what: str, to_do: str) -> Sentence[Refusal]:
    return Sentence(Refusal.BUSY, what, to_do)


def _failed(cause: Cause, what: str, to_do: str) -> Sentence[TaskPhase]:
    return Sentence(TaskPhase.FAILED, what, to_do, cause)


def _ended(phase: TaskPhase, what: str, to_do: str) -> Sentence[TaskPhase]:
    return Sentence(phase, what, to_do)


# ------------------------------------------------------------------ refused: malformed

ASSIGNMENT_TOO_LARGE = _invalid(
    "task_id: the assignment is over {most} bytes",
    "give large content as inputs that are not inline",
)
TASK_ID_INVALID = _invalid(
    "task_id: must be [A-Za-z0-9_.-]{{1,64}} and not only dots", "give the task such a name"
)
ATTEMPT_INVALID = _invalid("attempt: must be 1 or more", "count attempts from 1")
IMAGE_NAME_INVALID = _invalid(
    "image: '{image}' {fault}", "write it as `docker pull` takes it, with its tag or digest"
)
SECRET_TWICE = _invalid(
    "secrets: {name} is in environment too", "give it once: what is secret only in secrets"
)
START_INVALID = _invalid(
    "{fault}", "correct or shorten it, or give what is long as an input"
)
CPUS_INVALID = _invalid(
    "resources.cpus: must be a number, 0 or more", "give the number of cores, or 0"
)
SIZE_INVALID = _invalid("{field}: is over {most}", "give a size in bytes, or 0 for the default")
TIMEOUT_INVALID = _invalid("timeout: must be more than 0", "leave it out for the node's default")
STOP_GRACE_INVALID = _invalid("stop_grace: must be 0 or more", "leave it out for the default")
REQUIREMENTS_TOO_LONG = _invalid(
    "requirements: are over {most} characters", "name fewer, or put what is needed into the image"
)
TOO_MANY = _invalid("{field}: are over {most}", "pack many files into one archive, drop the rest")
DIGEST_INVALID = _invalid("{field}: must be {length} bytes", "give the content's SHA-256, raw")
INLINE_TOO_LARGE = _invalid(
    "{field}: is over {most} bytes", "leave the content out, the node fetches it"
)
INLINE_SIZE_DIFFERS = _invalid(
    "{field}: is {size}, inline has {inline} bytes", "submit the task again with the file as it is"
)
INLINE_DIGEST_DIFFERS = _invalid(
    "{field}: is not the digest of the content", "submit the task again with the file as it is"
)
PATH_INVALID = _invalid(
    "{field}: must be relative, below its folder, without '.', '..' or empty names",
    "write it so: data/numbers.csv",
)
PATH_TOO_LONG = _invalid(
    "{field}: is too long", "shorten it: {most} bytes in all, {most_name} for each name"
)
PATH_TWICE = _invalid("{field}: '{path}' comes twice", "give each input a path of its own")
PATH_BELOW_FILE = _invalid(
    "{field}: lies in '{above}', which is a file", "give it a path beside that file"
)
REQUIREMENT_INVALID = _invalid(
    "{field}: {fault}",
    "write it as numpy>=2, or as name @ https://host/name-1.0-py3-none-any.whl",
)
ATTEMPT_OLD = _invalid(
    "attempt {attempt} is older than {newest}, which this node knows",
    "assign an attempt with a higher number",
)
CONTENT_DIFFERS = _invalid(
    "attempt {attempt} came before with other content", "assign what differs as a new attempt"
)
ATTEMPT_FORGOTTEN = _invalid(
    "attempt {attempt}: the master has asked to forget it", "assign a new attempt"
)
DELIVERED_BEFORE = _invalid(
    "attempt {attempt}: delivered before, and no longer kept here", "assign a new attempt"
)

# ------------------------------------------------------------------ refused: does not fit

TRUST_TOO_LOW = _refused(
    Refusal.FORBIDDEN,
    "min_trust_level is {asked}, this node's is {level}",
    "give it to a node that the master trusts more",
)
IMAGE_NOT_READ = _refused(
    Refusal.FORBIDDEN,
    "image '{image}' {fault}",
    "write it as `docker pull` takes it, with its tag or digest",
)
IMAGE_ALLOWED_BY_DIGEST = _refused(
    Refusal.FORBIDDEN,
    "image '{image}' is not among this node's ALLOWED_IMAGES",
    "name it by its digest, as {name} is allowed",
)
IMAGE_ALLOWED_BY_TAG = _refused(
    Refusal.FORBIDDEN,
    "image '{image}' is not among this node's ALLOWED_IMAGES by its digest",
    "it is allowed by tag: name it without the digest",
)
IMAGE_TAG_NOT_ALLOWED = _refused(
    Refusal.FORBIDDEN,
    "image '{image}' is not among this node's ALLOWED_IMAGES with this tag",
    "choose another tag, or ask the node's owner to add a pattern for it",
)
IMAGE_NOT_ALLOWED = _refused(
    Refusal.FORBIDDEN,
    "image '{image}' is not among this node's ALLOWED_IMAGES",
    "use another image, or ask the node's owner to add a pattern for it",
)
EGRESS_OFF = _refused(
    Refusal.FORBIDDEN,
    "network EGRESS: the owner has set EGRESS=off",
    "give it to another node, or ask the owner to set EGRESS=on",
)
EGRESS_NOT_READY = _refused(
    Refusal.FORBIDDEN,
    "network EGRESS: the firewall of task networks is not in force on this node",
    "give it to another node; the owner finds the reason in vpn.log and executor.log",
)
NO_NETWORK_IN_GVISOR = _refused(
    Refusal.FORBIDDEN,
    "network EGRESS, requirements: this node runs every task in gVisor, without a network",
    "give it to another node, or ask the owner to set SANDBOX=runc",
)
REQUIREMENTS_EGRESS_OFF = _refused(
    Refusal.FORBIDDEN,
    "requirements: they are installed over the network, and the owner has set EGRESS=off",
    "put what the task needs into its image, or give it to another node",
)
REQUIREMENTS_EGRESS_NOT_READY = _refused(
    Refusal.FORBIDDEN,
    "requirements: the firewall of the network on which they are installed is not in force",
    "give it to another node; the owner finds the reason in vpn.log and executor.log",
)
RESOURCE_TOO_LARGE = _refused(
    Refusal.TOO_LARGE,
    "resources.{field} is {asked}, a task on this node may have {most}",
    "ask for less, or give it to a larger or more trusted node",
)
NOTHING_TO_GIVE = _refused(
    Refusal.TOO_LARGE,
    "this node's owner keeps all of its memory or cores",
    "give it to another node; the owner's settings are RESERVED_CPUS and RESERVED_MEMORY",
)
TRUST_CHANGED = _busy(
    "this node has just been given another trust level", "send it again in a second"
)
GPUS_UNKNOWN = _busy(
    "the monitor of this node's GPUs has not spoken yet", "send it again in a few seconds"
)
GPUS_LOST = _busy(
    "{lost} of this node's GPUs can't be used at the moment",
    "send it again later, or elsewhere; the owner finds the reason on the node's page",
)
NODE_NOT_READY = _busy("this node is {phase}: {reason}", "send it again later, or elsewhere")
NODE_FULL = _busy(
    "this node holds {held} tasks, its limit",
    "send it again when one has ended, or elsewhere; the owner's limit is MAX_HELD_TASKS",
)
EXECUTOR_AWAY = _busy(
    "the executor is away", "send it again in a few seconds: it is started again by itself"
)
EGRESS_AWAY = _busy(
    "network EGRESS: the firewall of task networks is not confirmed at this moment",
    "send it again in a second: the process that keeps it begins, or is started again by itself",
)
ASSIGNMENT_NOT_STORED = _busy(
    "the assignment can't be stored: {words}",
    "send it again later, or elsewhere; the owner should look at the node's disk",
)
DRAINING = _refused(
    Refusal.DRAINING, "this node finishes what it has", "give it to another node"
)

# ------------------------------------------------------------------ failed: the task's own

EXITED = _failed(
    Cause.EXIT, "the command exited {code}", "its log says why, if it says anything"
)
KILLED = _failed(
    Cause.EXIT,
    "the command was killed by signal {number} ({name})",
    "it, or what it calls, sent it or crashed: look at its log",
)
KEEPER_KILLED = _failed(
    Cause.EXIT,
    "it killed the keeper of its container, and all of it ended",
    "let the command signal only processes that it has started",
)
COMMAND_NOT_STARTED = _failed(
    Cause.START,
    "the command could not be started: {words}",
    "look whether it is in the image and may be executed; it follows the image's entry point",
)
COMMAND_MISSING = _failed(
    Cause.START, "image {image} has no command, nor has the task", "give the task a command"
)
COMMAND_INVALID = _failed(
    Cause.START,
    "the command could not be started: {fault}",
    "shorten it, or give what is long as an input; the image's own environment counts too",
)

# ------------------------------------------------------------------ failed: made ready

IMAGE_DISALLOWED = _failed(
    Cause.IMAGE,
    "image '{image}' is not among this node's ALLOWED_IMAGES any more",
    "order another attempt elsewhere, or ask the node's owner to add a pattern for it",
)
IMAGE_NOT_PULLED = _failed(
    Cause.IMAGE,
    "image {image} could not be pulled: {words}",
    "check its name, and that this machine reaches its registry and may read it there",
)
IMAGE_STALLED = _failed(
    Cause.IMAGE,
    "image {image} could not be pulled: nothing moved for {waited_s} s, {where}",
    "order another attempt, later or on another node: its registry or the way to it is stuck",
)
IMAGE_NO_ROOM = _failed(
    Cause.NODE,
    "image {image} could not be pulled, the disk is full: {words}",
    "order another attempt elsewhere; the node's owner should free some, or lower IMAGE_DISK_PCT",
)
IMAGE_VANISHED = _failed(
    Cause.IMAGE,
    "image {image} was pulled, and is not here: {words}",
    "order another attempt; if it happens again, something on the node removes images",
)
IMAGE_UNUSABLE = _failed(
    Cause.IMAGE,
    "image {image} could not be used: {words}",
    "check its name, and that the image is made for this machine",
)
INPUT_MISSING = _failed(
    Cause.INPUT, "input '{path}': {words}", "submit the task again with that file"
)
INPUT_SIZE_DIFFERS = _failed(
    Cause.INPUT,
    "input '{path}' has {size} bytes, the assignment says {wanted}",
    "submit the task again with the file as it is now",
)
INPUT_DIGEST_DIFFERS = _failed(
    Cause.INPUT,
    "input '{path}': its SHA-256 is not the assignment's",
    "submit the task again with the file as it is now",
)
INPUT_FILE_AND_FOLDER = _failed(
    Cause.INPUT, "input {path}: '{name}' is a file and a folder", "give one of the two another path"
)
INPUT_TWICE = _failed(
    Cause.INPUT, "input '{path}' is there twice", "give one of the two another path"
)
INPUT_BROKEN = _failed(
    Cause.INPUT,
    "input '{path}' can't be unpacked: {words}",
    "pack it again, as .zip, .tar, .tar.gz or .tar.zst, within the task's limit of disk",
)
REQUIREMENTS_NOT_INSTALLED = _failed(
    Cause.DEPENDENCIES,
    "its requirements could not be installed: {words}",
    "correct them, or put what the task needs into its image",
)
REQUIREMENTS_WITHOUT_PYTHON = _failed(
    Cause.DEPENDENCIES,
    "image {image} has no python3, which requirements are installed with",
    "choose an image with Python {oldest} or later",
)
REQUIREMENTS_PYTHON_OLD = _failed(
    Cause.DEPENDENCIES,
    "the python3 of image {image} is too old for pip",
    "choose an image with Python {oldest} or later",
)
REQUIREMENTS_OUT_OF_MEMORY = _failed(
    Cause.DEPENDENCIES,
    "the installation of its requirements was killed at the task's limit of memory, {limit} bytes",
    "ask for more (resources.memory_bytes), or for such as have wheels",
)
REQUIREMENTS_OUT_OF_DISK = _failed(
    Cause.DEPENDENCIES,
    "its requirements took {used} bytes of disk, the task's limit is {limit}",
    "ask for more (resources.disk_bytes), or for fewer",
)
REQUIREMENTS_TOO_SLOW = _failed(
    Cause.DEPENDENCIES,
    "its requirements were not installed within {minutes} minutes ({progress})",
    "ask for fewer, or for such as have wheels, or put them into its image",
)
REQUIREMENTS_STUCK = _failed(
    Cause.DEPENDENCIES,
    "nothing moved for {seconds} s while its requirements were installed ({progress})",
    "order another attempt; the node's owner should look whether its package index answers",
)
REQUIREMENTS_NODE = _failed(
    Cause.NODE,
    "its requirements could not be installed on this node: {words}",
    "order another attempt elsewhere; the node's owner finds more in executor.log",
)

# ------------------------------------------------------------------ failed: the node

EGRESS_TURNED_OFF = _failed(
    Cause.NODE,
    "network EGRESS: the owner has set EGRESS=off or SANDBOX=runsc since it was accepted",
    "order another attempt elsewhere, or ask the owner to set it back",
)
NETWORK_NOT_MADE = _failed(
    Cause.NODE,
    "no network could be made for it: {words}",
    "order another attempt elsewhere; the node's owner should remove networks that nobody uses"
    " (`docker network prune`), or give Docker more default-address-pools",
)
CONTAINER_NOT_MADE = _failed(
    Cause.NODE,
    "the container could not be made: {words}",
    "order another attempt elsewhere; the node's owner should look at Docker's own log",
)
CONTAINER_NOT_STARTED = _failed(
    Cause.NODE,
    "its container could not be started: {words}",
    "order another attempt elsewhere; the node's owner should look at Docker's own log",
)
GPU_DRIVER_MISSING = _failed(
    Cause.NODE,
    "the container engine can't give it a GPU: {words}",
    "order another attempt elsewhere; on the node, install the NVIDIA container toolkit and"
    " restart Docker",
)
KEEPER_SILENT = _failed(
    Cause.NODE,
    "the keeper of its container ended before it could speak",
    "order another attempt, with more memory if it had little",
)
RAN_BEFORE = _failed(
    Cause.NODE,
    "it ran, and its record can't be read: {words}",
    "order another attempt; this one may have had effects outside",
)
DIRECTORIES_NOT_MADE = _failed(
    Cause.NODE,
    "its directories could not be made: {words}",
    "order another attempt elsewhere; the node's owner should look at its disk",
)
SPEC_UNREADABLE = _failed(
    Cause.NODE,
    "what was assigned can't be read: {words}",
    "order another attempt; the node's owner should look at its disk",
)
REPORT_UNREADABLE = _failed(
    Cause.NODE,
    "its report could not be read: {words}",
    "look at its log for what it did, or order another attempt; the node's disk may be failing",
)
OUTPUT_NOT_PACKED = _failed(
    Cause.NODE,
    "its output could not be packed: {words}",
    "order another attempt; the node's owner should look at its disk",
)
END_UNKNOWN = _failed(
    Cause.NODE, "it ended, and nothing says how", "order another attempt, look at its log"
)
ENGINE_ENDED_IT = _failed(
    Cause.INTERRUPTED,
    "the container engine went down under it, then ended it",
    "order another attempt; with live-restore Docker's restarts harm no task",
)
ENGINE_WENT_DOWN = _failed(
    Cause.INTERRUPTED,
    "the container engine went down under it",
    "order another attempt; with live-restore Docker's restarts harm no task",
)
MACHINE_RESTARTED = _failed(
    Cause.INTERRUPTED, "the machine was started anew under it", "order another attempt"
)
CONTAINER_REMOVED = _failed(
    Cause.REMOVED,
    "someone else removed its container",
    "order another attempt; on the node, tasks are stopped on the page, not in Docker",
)

# ------------------------------------------------------------------ other ends

OUT_OF_MEMORY = _ended(
    TaskPhase.OUT_OF_MEMORY,
    "it was killed at its limit of memory",
    "ask for more (resources.memory_bytes; /tmp counts too), or let it need less",
)
OUT_OF_DISK = _ended(
    TaskPhase.OUT_OF_DISK,
    "it used {used} bytes of disk, its limit is {limit}",
    "ask for more (resources.disk_bytes), or let it write less",
)
OUTPUT_TOO_LARGE = _ended(
    TaskPhase.OUT_OF_DISK,
    "the output is larger than output_limit_bytes, {limit}",
    "raise that limit, or name what is wanted of the output in output_globs",
)
OUTPUT_TOO_MANY = _ended(
    TaskPhase.OUT_OF_DISK,
    "its output has over {most} files and folders, or fewer with long names",
    "let it pack them into an archive itself, or write fewer",
)
OUTPUT_MOVES = _ended(
    TaskPhase.OUT_OF_DISK,
    "it moves folders deep in its output all the time, so that its use of disk can't be told",
    "let it move them once, or nest them less deep",
)
OUTPUT_PATH_TOO_LONG = _ended(
    TaskPhase.OUT_OF_DISK,
    "its output has a path of over {most} bytes, which nobody can unpack: …/{name}",
    "let it nest its folders less deep, or pack them itself",
)
TIMED_OUT = _ended(
    TaskPhase.TIMED_OUT,
    "it ran longer than its timeout of {timeout_s} s",
    "submit it with a longer timeout, or let it do less",
)
CANCELLED = _ended(
    TaskPhase.CANCELLED,
    "the master cancelled it: {reason}",
    "submit it again if it is still wanted",
)
SUPERSEDED = _ended(
    TaskPhase.CANCELLED, "{newer} of the task has been assigned", "look at the newer one"
)
FORGOTTEN = _ended(
    TaskPhase.CANCELLED,
    "the master has recorded its end and asked to forget it",
    "look there for its result",
)
STOPPED_BY_OWNER = _ended(
    TaskPhase.CANCELLED,
    "the machine's owner stopped it",
    "submit it again: another node may take it",
)
UNWANTED = _ended(
    TaskPhase.CANCELLED,
    "the master no longer wants it: it is not among those it named for a minute",
    "submit it again if it is still wanted",
)

SENTENCES: dict[str, Sentence[Refusal] | Sentence[TaskPhase]] = {
    name: value for name, value in list(globals().items()) if isinstance(value, Sentence)
}
GROUPS = ("Refused", "Failed", "Other ends")


def group(sentence: Sentence[Refusal] | Sentence[TaskPhase]) -> str:
    if isinstance(sentence.code, Refusal):
        return GROUPS[0]
    return GROUPS[1] if sentence.code is TaskPhase.FAILED else GROUPS[2]


def table() -> str:
    """The whole table as text, for the README."""
    lines: list[str] = []
    for title in GROUPS:
        lines += ["", f"**{title}**", "", "| code | what happened | what to do |", "|---|---|---|"]
        found = (one for one in SENTENCES.values() if group(one) == title)
        lines += sorted(_row(one) for one in found)
    return "\n".join(lines[1:])


def _row(one: Sentence[Refusal] | Sentence[TaskPhase]) -> str:
    code = f"{one.code}, {one.cause}" if one.cause else one.code
    return f"| `{code}` | {_cell(one.what)} | {_cell(one.to_do)} |"


def _cell(template: str) -> str:
    return template.replace("{{", "{").replace("}}", "}").replace("|", "\\|")
