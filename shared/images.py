"""An image's name as Docker reads it, and whether the owner lets it run. Pure.

A boundary of security: what can't be read for certain is refused, never guessed. Patterns are
compared with the parts of the full name, so that no spelling gets past them.
"""

import re
from dataclasses import dataclass, replace

from shared import sentences
from shared.sentences import Refusal, Said

HUB, OFFICIAL, LATEST = "docker.io", "library", "latest"  # what a name leaves out
HUB_TOO = "index.docker.io"
MOST_CHARACTERS = 255  # of a name without tag and digest

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_ID = re.compile(r"[0-9a-f]{64}|sha(?:256|384|512)")  # an id, or `sha256:` before one
_WILD = {"*": "[^/:@]*", "?": "[^/:@]"}
ALL_BELOW = "**"


class ImageNameError(ValueError):
    """It is no image's name, or no pattern of one; the text says what it should be."""


@dataclass(frozen=True)
class Reference:
    """An image's full name: a tag or a digest. Beside a digest, Docker makes nothing of a tag."""

    host: str
    path: str
    tag: str
    digest: str

    @property
    def repository(self) -> str:
        """As Docker shows it. Never shorter than what is read back as the same."""
        if self.host != HUB:
            return f"{self.host}/{self.path}"
        first, _, rest = self.path.partition("/")
        return rest if first == OFFICIAL and "/" not in rest else self.path

    @property
    def version(self) -> str:
        """What to ask a registry for: the digest or else the tag."""
        return self.digest or self.tag

    @property
    def name(self) -> str:
        """What to ask Docker for. It always has a tag or a digest: no id looks like it."""
        return f"{self.repository}{'@' if self.digest else ':'}{self.version}"


def read_image(text: str) -> Reference:
    """ImageNameError unless it is a name that every Docker reads alike."""
    found = _split(text)
    if _looks_like_id(text):
        raise ImageNameError("is an image's id: name the image, and its digest if that matters")
    if not _is_sound(found):
        raise ImageNameError("is not an image's name such as debian:12, in lower case")
    return replace(found, tag="" if found.digest else found.tag or LATEST)


def is_image(text: str) -> bool:
    try:
        read_image(text)
    except ImageNameError:
        return False
    return True


@dataclass(frozen=True)
class Pattern:
    """One word of ALLOWED_IMAGES. No tag and no digest: whichever of that name."""

    host: re.Pattern[str]
    path: re.Pattern[str]
    tag: re.Pattern[str] | None
    digest: str

    def is_of(self, image: Reference) -> bool:
        """Does it name this repository?"""
        return bool(self.host.fullmatch(image.host) and self.path.fullmatch(image.path))

    def allows(self, image: Reference) -> bool:
        if not self.is_of(image):
            return False
        if self.digest:
            return image.digest == self.digest
        return self.tag is None or (not image.digest and bool(self.tag.fullmatch(image.tag)))


EVERYTHING = Pattern(re.compile(".*"), re.compile(".*"), None, "")


def read_pattern(text: str) -> Pattern:
    """`*` and `?` as in a shell, within one part of the name; `/**` at its end: all below."""
    if text in ("*", ALL_BELOW):
        return EVERYTHING
    found = _split(text)
    filled = Reference(_filled(found.host), _filled(found.path), _filled(found.tag), found.digest)
    named = "" if found.path == ALL_BELOW else found.path.removesuffix(f"/{ALL_BELOW}")
    stars = ALL_BELOW in f"{found.host} {named} {found.tag}"
    if stars or _looks_like_id(text) or not _is_sound(filled):
        raise ImageNameError("is not a pattern such as python, debian:1? or ghcr.io/acme/**")
    host, path, tag = (_translated(part) for part in (found.host, found.path, found.tag))
    return Pattern(host, path, tag if found.tag else None, found.digest)


def image_refusal(text: str, patterns: tuple[str, ...]) -> Said[Refusal] | None:
    """Why the patterns don't allow it, and what would be allowed; None: they do."""
    try:
        image = read_image(text)
    except ImageNameError as err:
        return sentences.IMAGE_NOT_READ.say(image=text, fault=err)
    read = [read_pattern(pattern) for pattern in patterns]
    if any(pattern.allows(image) for pattern in read):
        return None
    near = [pattern for pattern in read if pattern.is_of(image)]
    digest = next((pattern.digest for pattern in near if pattern.digest), "")
    if digest:
        name = f"{image.repository}@{digest}"
        return sentences.IMAGE_ALLOWED_BY_DIGEST.say(image=text, name=name)
    if near and image.digest:
        return sentences.IMAGE_ALLOWED_BY_TAG.say(image=text)
    if near:
        return sentences.IMAGE_TAG_NOT_ALLOWED.say(image=text)
    return sentences.IMAGE_NOT_ALLOWED.say(image=text)


def _split(text: str) -> Reference:
    """Host, path, tag and digest where Docker sees them, with nothing checked."""
    name, at, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    host, path = (first, rest) if slash and _looks_like_host(first) else (HUB, name)
    folder, slash, last = path.rpartition("/")
    last, colon, tag = last.partition(":")
    path = folder + slash + last
    host = HUB if host == HUB_TOO else host
    if host == HUB and "/" not in path and path != ALL_BELOW:
        path = f"{OFFICIAL}/{path}"
    return Reference(host, path, tag or colon, digest or at)  # an empty one is not sound


def _looks_like_host(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost"


def _looks_like_id(text: str) -> bool:
    return bool(_ID.fullmatch(text.partition(":")[0]))


def _is_sound(image: Reference) -> bool:
    first, slash, _ = image.path.partition("/")
    if len(image.host) + 1 + len(image.path) > MOST_CHARACTERS:
        return False
    if image.host == HUB and slash and _looks_like_host(first):
        return False  # Docker shows docker.io/a.com/b as a.com/b, which is another image
    return bool(
        _HOST.fullmatch(image.host)
        and _PATH.fullmatch(image.path)
        and (not image.tag or _TAG.fullmatch(image.tag))
        and (not image.digest or _DIGEST.fullmatch(image.digest))
    )


def _filled(part: str) -> str:
    """A name that the pattern might admit."""
    return part.replace("*", "0").replace("?", "0")


def _translated(part: str) -> re.Pattern[str]:
    below = part.endswith(f"/{ALL_BELOW}") or part == ALL_BELOW
    part = part.removesuffix(ALL_BELOW) if below else part
    words = "".join(_WILD.get(character) or re.escape(character) for character in part)
    return re.compile(words + (".+" if below else ""))
