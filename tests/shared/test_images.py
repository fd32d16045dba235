"""Names of images as Docker reads them, and what ALLOWED_IMAGES lets through."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.images import (
    ImageNameError,
    image_refusal,
    is_image,
    read_image,
    read_pattern,
)
from shared.sentences import Refusal

ONE, TWO = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
ID = "4d5e6f70" * 8


@pytest.mark.parametrize(
    ("text", "name", "host"),
    [
        ("python", "python:latest", "docker.io"),
        ("python:3.12", "python:3.12", "docker.io"),
        ("library/python", "python:latest", "docker.io"),
        ("docker.io/python", "python:latest", "docker.io"),
        ("docker.io/library/python:3", "python:3", "docker.io"),
        ("index.docker.io/library/python", "python:latest", "docker.io"),
        ("acme/python", "acme/python:latest", "docker.io"),
        ("docker.io/acme/python", "acme/python:latest", "docker.io"),
        ("library/a/b", "library/a/b:latest", "docker.io"),
        ("ghcr.io/acme/python:1", "ghcr.io/acme/python:1", "ghcr.io"),
        ("ghcr.io/python", "ghcr.io/python:latest", "ghcr.io"),
        ("registry:5000/python", "registry:5000/python:latest", "registry:5000"),
        ("registry:5000", "registry:5000", "docker.io"),
        ("localhost/a", "localhost/a:latest", "localhost"),
        ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c", "127.0.0.1:5000"),
        (f"python@{ONE}", f"python@{ONE}", "docker.io"),
        (f"python:3.12@{ONE}", f"python@{ONE}", "docker.io"),
        (f"h:1/a:2@{ONE}", f"h:1/a@{ONE}", "h:1"),
        ("A.COM/a", "A.COM/a:latest", "A.COM"),
        ("a:A-b.c_D", "a:A-b.c_D", "docker.io"),
        ("deadbeef", "deadbeef:latest", "docker.io"),
        ("a__b/c--d", "a__b/c--d:latest", "docker.io"),
    ],
)
def test_a_name_is_read_as_docker_reads_it(text: str, name: str, host: str) -> None:
    image = read_image(text)
    assert (image.name, image.host) == (name, host)
    assert read_image(image.name) == image, "asked for by another name it would be another"


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "Python", "acme/Python", "Acme/python", "LOCALHOST/a", "-a", "a-", "a..b", "a/",
        "/a", "a//b", "a:", "a@", f"a:@{ONE}", "a:b:c", "a:b/c:", "a:1/b/c:d@", "a:.b", "a b",
        "a\n", "a:" + "t" * 129, "a/" * 130 + "a", "é", "a@sha256:12", f"a@{ONE.upper()}",
        f"a@md5:{'1' * 32}",
        f"a@{ONE}@{TWO}", f"@{ONE}", ONE, f"sha256:{'1' * 12}", ID, f"{ID}:latest", "sha512:ab",
        "http://a/b", "h:port/a", "h:123456/a", "--privileged", "../a", "a/../b",
        "docker.io/evil.com/a", "docker.io/localhost/a", "index.docker.io/h:1/a",
        "a*", "a?", "**", "*",
    ],
)  # fmt: skip
def test_what_docker_does_not_take_or_reads_in_two_ways_is_no_name(text: str) -> None:
    assert not is_image(text)


def test_an_id_is_told_from_a_name() -> None:
    with pytest.raises(ImageNameError, match="is an image's id"):
        read_image(ID)
    with pytest.raises(ImageNameError, match="is an image's id"):
        read_image(ONE)
    assert is_image("sha256") is False
    assert is_image("acme/sha256:1")
    assert is_image(f"a/{ID}")


PARTS = st.from_regex(re.compile(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,4})?"), fullmatch=True)
HOSTS = st.sampled_from(["", "docker.io/", "index.docker.io/", "ghcr.io/", "h:5000/", "localhost/"])
NAMES = st.builds(
    lambda host, path, tag, digest: f"{host}{'/'.join(path)}{tag}{digest}",
    HOSTS,
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(["", ":latest", ":1.2", ":V_3"]),
    st.sampled_from(["", f"@{ONE}", f"@{TWO}"]),
)


@given(NAMES)
def test_the_name_that_docker_is_asked_for_is_the_one_that_was_judged(text: str) -> None:
    if is_image(text):
        image = read_image(text)
        assert read_image(image.name) == image
        assert image_refusal(text, (image.name,)) is None
        assert image_refusal(image.name, (text,)) is None


@given(NAMES, NAMES)
def test_a_pattern_without_wildcards_admits_itself_alone(text: str, other: str) -> None:
    if is_image(text) and is_image(other):
        asked, listed = read_image(text), read_image(other)
        bare = ":" not in other.rpartition("/")[2]
        same = asked == listed or (
            bare and (asked.host, asked.path) == (listed.host, listed.path)
        )
        assert (image_refusal(text, (other,)) is None) is same


@pytest.mark.parametrize(
    ("pattern", "admitted", "refused"),
    [
        ("*", ["a", "h:1/a/b/c:d", f"a@{ONE}", "ghcr.io/a"], ["A", ONE]),
        ("**", ["a", "h:1/a/b/c:d"], []),
        ("python",
         ["python", "python:3.12", f"python@{ONE}", "docker.io/library/python", "library/python:1"],
         ["python-evil", "python-evil/x", "evil.com/python", "acme/python", "pythonx", "xpython",
          "docker.io/acme/python", "library/python/x", "python.evil.com/x",
          "ghcr.io/library/python"]),
        ("docker.io/library/python", ["python", "python:1"], ["acme/python"]),
        ("python*",
         ["python", "python3:x", "python-slim", f"python-slim@{ONE}"],
         ["python-evil/x", "python.evil.com/x", "python:5000/x", "evil.com/python", "pytho"]),
        ("python:3.12",
         ["python:3.12", "library/python:3.12"],
         ["python", "python:3.12.1", "python:3-12", f"python@{ONE}", f"python:3.12@{ONE}"]),
        ("python:latest", ["python", "python:latest"], [f"python@{ONE}", "python:1"]),
        ("python:3.*", ["python:3.12", "python:3."], ["python:3", "python", f"python:3.1@{ONE}"]),
        ("debian:1?", ["debian:12"], ["debian:1", "debian:123", "debian"]),
        ("python:*", ["python", "python:1"], [f"python@{ONE}", "python/x"]),
        (f"python@{ONE}",
         [f"python@{ONE}", f"python:3@{ONE}", f"docker.io/library/python@{ONE}"],
         ["python", "python:latest", f"python@{TWO}", f"acme/python@{ONE}", f"h:1/python@{ONE}"]),
        (f"python:3@{ONE}", [f"python@{ONE}", f"python:4@{ONE}"], ["python:3", f"python@{TWO}"]),
        (f"*/x@{ONE}", [f"a/x@{ONE}"], [f"a/x@{TWO}", "a/x", f"ghcr.io/a/x@{ONE}"]),
        ("acme/*", ["acme/a", "acme/a:1"], ["acme/a/b", "acme2/a", "ghcr.io/acme/a", "acme"]),
        ("*/python", ["acme/python", "python"], ["ghcr.io/python", "a/b/python"]),
        ("ghcr.io/acme/**",
         ["ghcr.io/acme/a", "ghcr.io/acme/a/b:1", f"ghcr.io/acme/a@{ONE}"],
         ["ghcr.io/acme", "ghcr.io/acme2/a", "ghcr.io.evil.com/acme/a", "ghcrxio/acme/a", "acme/a",
          "evil.com/ghcr.io/acme/a", "ghcr.io:5000/acme/a", "GHCR.io/acme/a"]),
        ("ghcr.io/**", ["ghcr.io/a", "ghcr.io/a/b/c"], ["a", "ghcr.io:1/a"]),
        ("ghcr.io/**:1", ["ghcr.io/a/b:1"], ["ghcr.io/a/b", f"ghcr.io/a/b@{ONE}"]),
        ("docker.io/*", ["python", "library/x:1"], ["acme/python", "ghcr.io/x"]),
        ("docker.io/**", ["python", "acme/python", "a/b/c"], ["ghcr.io/x", "h:1/x", "localhost/x"]),
        ("*.acme.org/x", ["a.acme.org/x", "a.b.acme.org/x:2"],
         ["acme.org/x", "a.acme.org:5000/x", "a.acme.org.evil.com/x", "evil.com/a.acme.org/x"]),
        ("localhost:*/x", ["localhost:5000/x"], ["localhost/x", "localhost:5000/y", "a:1/x"]),
        ("registry:5000/a", ["registry:5000/a", "registry:5000/a:1"],
         ["registry:5001/a", "registry/a", "registry:50001/a", "a"]),
        ("registry:5000", ["registry:5000"], ["registry:5000/a", "registry"]),
        ("a.b/c", ["a.b/c"], ["axb/c"]),
    ],
)  # fmt: skip
def test_what_a_pattern_admits(pattern: str, admitted: list[str], refused: list[str]) -> None:
    assert [image for image in admitted if image_refusal(image, (pattern,))] == []
    assert [image for image in refused if not image_refusal(image, (pattern,))] == []


@pytest.mark.parametrize(
    "text",
    [
        "", "Python", "a[12]", "!a", "a/**/b", "**/a", "a**", "***", "a/***", "ghcr.io**/a", "a:**",
        f"a@{ONE[:-1]}*", "a@*", "a@", "a:", "/a", "a/", "*:", "sha256:*", ID, "a b", "a\n", "http://a",
        "docker.io/*.com/a", "../*", "-*",
    ],
)  # fmt: skip
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ImageNameError):
        read_pattern(text)


@pytest.mark.parametrize(
    ("image", "patterns", "said"),
    [
        ("python", ("debian",), "image 'python' is not among this node's ALLOWED_IMAGES;"),
        ("python:3", ("debian", f"python@{ONE}"), f"by its digest, as python@{ONE} is"),
        (f"python@{TWO}", (f"python@{ONE}",), f"by its digest, as python@{ONE} is"),
        (f"python@{TWO}", ("python:3",), "it is allowed by tag: name it without the digest"),
        ("python:4", ("python:3",), "choose another tag"),
        ("python", (), "image 'python' is not among this node's ALLOWED_IMAGES;"),
        ("Python", ("*",), "'Python' is not an image's name such as debian:12, in lower case"),
    ],
)
def test_a_refusal_says_what_would_be_allowed(
    image: str, patterns: tuple[str, ...], said: str
) -> None:
    refused = image_refusal(image, patterns)
    assert refused is not None
    assert refused.code is Refusal.FORBIDDEN
    assert said in refused.text


def test_any_of_the_patterns_is_enough() -> None:
    assert image_refusal("b:1", ("a", "b", "c")) is None
