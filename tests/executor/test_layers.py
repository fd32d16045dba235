"""Layers on disk: whole or not used, shared, and removed by least use."""

import os
from pathlib import Path

import msgspec
import pytest

from procs.executor import layers as module
from procs.executor.layers import LayerError, Layers, layer_name
from shared.files import remove_tree
from shared.taskdir import LAYERS, SITE, TaskKey

KEY, OTHER = TaskKey("a", 1), TaskKey("b", 1)
IMAGE = "sha256:1"
NAME = layer_name(("tool",), IMAGE)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def install(layers: Layers, requirement: str = "tool", content: bytes = b"A = 1\n") -> Path:
    """As pip would, by the task's user; the layer's place."""
    name = layer_name((requirement,), IMAGE)
    build = layers.begin(name)
    installed = build / "output" / "site"
    (installed / "bin").mkdir(parents=True)
    (installed / "tool.py").write_bytes(content)
    (installed / "bin" / "tool").write_bytes(b"#!/usr/bin/python3\n")
    (installed / "bin" / "tool").chmod(0o777)
    (installed / "link").symlink_to("tool.py")
    if os.geteuid() == 0:
        for path in (installed, *installed.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
    layers.finish(build, installed, (requirement,), IMAGE)
    remove_tree(build)
    return build.parent / name


def names(layers: Layers, home: Path) -> set[str]:
    return {path.name for path in (home / LAYERS).iterdir()}


def test_what_was_installed_is_ours_and_read_only(layers: Layers) -> None:
    place = install(layers)
    for path in (place / SITE, *(place / SITE).rglob("*")):
        status = path.lstat()
        assert status.st_uid == os.geteuid()
        assert path.is_symlink() or status.st_mode & 0o7222 == 0, path
    assert (place / SITE / "bin" / "tool").stat().st_mode & 0o111
    assert layers.hold(NAME, KEY)


def test_it_is_known_by_its_requirements_and_its_image() -> None:
    others = {layer_name(("tool",), "sha256:2"), layer_name(("tool", "b"), IMAGE)}
    assert NAME not in others
    assert len(others) == 2


def test_what_is_half_made_is_never_used_and_goes_with_the_next_life(
    layers: Layers, tmp_path: Path
) -> None:
    build = layers.begin(NAME)
    (build / "layer" / SITE).mkdir(parents=True)  # all but the rename
    assert not layers.hold(NAME, KEY)
    later = Layers(tmp_path)
    own = later.begin(NAME)
    later.tidy()
    assert names(later, tmp_path) == {own.name}


@pytest.mark.parametrize("harm", ["content", "file", "more", "mode", "link", "record", "no record"])
def test_a_broken_one_is_removed_and_not_used(
    layers: Layers, tmp_path: Path, harm: str
) -> None:
    place = install(layers)
    site = place / SITE
    match harm:
        case "content":
            (site / "tool.py").write_bytes(b"A = 2\n")
        case "file":
            (site / "tool.py").unlink()
        case "more":
            (site / "more.py").touch()
        case "mode":
            (site / "tool.py").chmod(0o555)
        case "link":
            (site / "link").unlink()
            (site / "link").symlink_to("/etc/passwd")
        case "record":
            (place / "layer.json").write_text('{"requirements": [')
        case "no record":
            (place / "layer.json").unlink()
    later = Layers(tmp_path)  # its content is looked at once in each life
    assert not later.hold(NAME, KEY)
    assert names(later, tmp_path) == set()
    install(later)
    assert later.hold(NAME, KEY)


def test_a_broken_one_that_is_mounted_goes_with_its_last_task(
    layers: Layers, tmp_path: Path
) -> None:
    place = install(layers)
    (place / SITE / "tool.py").write_bytes(b"A = 2\n")
    later = Layers(tmp_path)
    later.adopt(NAME, KEY)
    assert not later.hold(NAME, OTHER)
    (aside,) = (tmp_path / LAYERS).iterdir()
    assert (aside / SITE / "tool.py").read_bytes() == b"A = 2\n", "it may still read its files"
    install(later)
    assert later.hold(NAME, OTHER)
    later.release(KEY)
    assert not aside.exists()
    assert names(later, tmp_path) == {NAME}


def test_its_content_is_read_once_in_each_life(layers: Layers, tmp_path: Path) -> None:
    place = install(layers)
    later = Layers(tmp_path)
    assert later.hold(NAME, KEY)
    (place / SITE / "tool.py").write_bytes(b"A = 2\n")  # only root can, and only by intent
    assert later.hold(NAME, OTHER)
    assert not Layers(tmp_path).hold(NAME, KEY)


def test_where_two_make_it_the_first_is_used(layers: Layers) -> None:
    first = install(layers, content=b"A = 1\n")
    assert install(layers, content=b"A = 2\n") == first
    assert (first / SITE / "tool.py").read_bytes() == b"A = 1\n"
    assert layers.hold(NAME, KEY)


@pytest.mark.parametrize("kind", ["pipe", "set-id"])
def test_what_no_package_has_makes_no_layer(layers: Layers, kind: str) -> None:
    build = layers.begin(NAME)
    os.mkfifo(build / "pipe") if kind == "pipe" else (build / "set-id").touch()
    (build / kind).chmod(0o4755)
    with pytest.raises(LayerError, match=kind):
        layers.finish(build, build, ("tool",), IMAGE)
    assert not layers.hold(NAME, KEY)


def test_past_the_size_the_least_used_go_but_none_in_use(
    layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [install(layers, name) for name in ("one", "two", "three")]
    for age, place in enumerate(places):
        os.utime(place / "layer.json", (age, age))
    assert layers.hold(places[0].name, KEY)
    layers.adopt(places[1].name, OTHER)
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    just_made = install(layers, "four")
    assert layers.prune(), "for those that stay it is still past its size"
    assert names(layers, tmp_path) == {places[0].name, places[1].name, just_made.name}
    layers.release(OTHER)
    layers.prune()
    assert names(layers, tmp_path) == {places[0].name, just_made.name}
    os.utime(just_made / "layer.json", (1, 1))
    layers.release(KEY)
    os.utime(places[0] / "layer.json", (1, 1))
    assert not layers.prune()
    assert names(layers, tmp_path) == set()


def test_a_use_makes_it_the_last_to_go(layers: Layers) -> None:
    place = install(layers)
    os.utime(place / "layer.json", (1, 1))
    layers.hold(NAME, KEY)
    assert (place / "layer.json").stat().st_mtime > 1


@pytest.mark.parametrize(
    ("most", "gone"),
    [(3.0, ""), (2.9, "old"), (2.0, "old"), (1.9, "old middle"), (0.9, "old middle new")],
)
def test_the_oldest_go_first_and_no_more_than_must(
    layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float, gone: str
) -> None:
    places = {name: install(layers, name) for name in ("new", "old", "middle")}
    for age, name in enumerate(("old", "middle", "new")):
        os.utime(places[name] / "layer.json", (age, age))
    one = msgspec.json.decode((places["old"] / "layer.json").read_bytes())["size_bytes"]
    monkeypatch.setattr(module, "MOST_BYTES", int(most * one))
    assert not layers.prune()
    here = names(layers, tmp_path)
    assert [name for name in ("old", "middle", "new") if places[name].name not in here] == (
        gone.split()
    )
