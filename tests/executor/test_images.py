"""Which pulled images go when the disk fills up, and that no others do."""

import json
import time
from pathlib import Path

import pytest

from procs.executor.engine import DockerEngine, EngineAwayError, LocalImage, NotThereError
from procs.executor.images import LOOK_EACH_S, YOUNGEST_S, Images, Ours, Record, leaving, used_pct
from procs.executor.sandbox import Image

NOW = 1_000_000.0
OLD = NOW - YOUNGEST_S
DIGEST, OTHER = f"a@sha256:{'1' * 64}", f"b@sha256:{'2' * 64}"


class Shelf(DockerEngine):
    """An engine's images, without the engine."""

    def __init__(self, *images: LocalImage) -> None:
        super().__init__("unix:///nowhere")
        self.local = list(images)
        self.removed: list[str] = []
        self.used: set[str] = set()
        self.is_away = False

    def image(self, name: str) -> Image:
        if self.is_away:
            raise EngineAwayError("away")
        for image in self.local:
            if name in image.tags:
                return Image(image.image_id)
        raise NotThereError(name)

    def images(self) -> list[LocalImage]:
        return list(self.local)

    def images_in_use(self) -> set[str]:
        return self.used

    def remove_image(self, reference: str) -> None:
        self.removed.append(reference)


# ------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("image", "our", "leaves"),
    [
        pytest.param(LocalImage("i", ("a:1",)), Ours(("a:1",), OLD), True, id="unused for long"),
        pytest.param(LocalImage("i", ("a:1",)), Ours(("a:1",), OLD + 1), False, id="young"),
        pytest.param(LocalImage("i", ("a:1",)), None, False, id="the owner's own"),
        pytest.param(LocalImage("i", ("a:1", "mine:1")), Ours(("a:1",), OLD), False, id="named"),
        pytest.param(LocalImage("i", ("mine:1",)), Ours(("a:1",), OLD), False, id="renamed"),
        pytest.param(LocalImage("i"), Ours(("a:1",), OLD), True, id="its tag moved"),
        pytest.param(LocalImage("i", (), (DIGEST,)), Ours(("a:1",), OLD), True, id="digest left"),
        pytest.param(LocalImage("i", (), (DIGEST,)), Ours((DIGEST,), OLD), True, id="by digest"),
        pytest.param(LocalImage("i", (), (OTHER,)), Ours(("a:1",), OLD), False, id="elsewhere"),
        pytest.param(LocalImage("i", ("used:1",)), Ours(("used:1",), OLD), False, id="wanted"),
        pytest.param(LocalImage("i", ("a:1",), (f"used@{DIGEST[2:]}", DIGEST)),
                     Ours(("a:1", f"used@{DIGEST[2:]}"), OLD), False, id="wanted by digest"),
        pytest.param(LocalImage("held", ("a:1",)), Ours(("a:1",), OLD), False, id="in a container"),
    ],
)  # fmt: skip
def test_what_may_go(image: LocalImage, our: Ours | None, leaves: bool) -> None:
    wanted = {"used:1", f"used@{DIGEST[2:]}"}
    found = leaving({image.image_id: our} if our else {}, [image], wanted, {"held"}, NOW)
    assert found == ([image] if leaves else [])


def test_the_longest_unused_goes_first() -> None:
    names = ("b:1", "c:1", "a:1")
    local = [LocalImage(name, (name,)) for name in names]
    ours = {name: Ours((name,), OLD - number) for number, name in enumerate(names)}
    assert [i.image_id for i in leaving(ours, local, (), (), NOW)] == ["a:1", "c:1", "b:1"]


# ------------------------------------------------------------------ what is kept on disk


def test_what_was_pulled_outlives_the_process(tmp_path: Path) -> None:
    Record(tmp_path).add("i", "docker.io/library/a")
    Record(tmp_path).add("i", "b:2")
    Record(tmp_path).add("k", "c")
    again = Record(tmp_path)
    assert {key: our.names for key, our in again.all().items()} == {
        "i": ("a:latest", "b:2"),
        "k": ("c:latest",),
    }
    again.forget(["i", "never there"])
    assert list(Record(tmp_path).all()) == ["k"]


def test_a_use_counts_by_any_of_its_names(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.add("i", "a:1")
    record.add("k", "c:1")
    later = time.time() + 100
    record.use({f"docker.io/library/{DIGEST}": later, "b:9": later + 1}, [
        LocalImage("i", ("a:1",), (DIGEST,)), LocalImage("k", ("c:1",)), LocalImage("z", ("b:9",)),
    ])  # fmt: skip
    found = Record(tmp_path).all()
    assert found["i"].used_unix_s == later
    assert found["k"].used_unix_s < later
    assert "z" not in found, "what was there before is not ours by being used"
    record.use({"a:1": 5.0}, [LocalImage("i", ("a:1",))])
    assert record.all()["i"].used_unix_s == later, "a clock that was put back"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"i": {"names": 3}}', b"\xff\xfe"])
def test_a_broken_record_means_that_nothing_is_ours(tmp_path: Path, content: bytes) -> None:
    for name in ("images.json", "pulling.json"):
        (tmp_path / name).write_bytes(content)
    record = Record(tmp_path)
    assert not record.all()
    assert not record.pulling()
    record.add("i", "a:1")
    record.begin("b:1", ["i"])
    again = Record(tmp_path)
    assert (list(again.all()), again.pulling()) == (["i"], {"b:1": ("i",)})


# ------------------------------------------------------------------ a look at the disk


def images_of(shelf: Shelf, home: Path, most_pct: int) -> Images:
    (home / "lib").mkdir(exist_ok=True)
    return Images(shelf, home, "unix:///nowhere", most_pct)


def age(home: Path) -> None:
    """As if all had been unused for long."""
    path = home / "lib" / "images.json"
    entries = json.loads(path.read_bytes())
    path.write_text(json.dumps({key: {**one, "used_unix_s": 1.0} for key, one in entries.items()}))


def pull(images: Images, shelf: Shelf, *came: LocalImage, name: str = "") -> None:
    """Of the first that comes, unless another is named."""
    with images.pulling(name or came[0].tags[0]):
        shelf.local += came


def test_only_what_a_pull_brought_is_ours(tmp_path: Path) -> None:
    shelf = Shelf(LocalImage("owners", ("mine:1",)))
    images = images_of(shelf, tmp_path, 1)
    pull(images, shelf, LocalImage("new", ("a:1",)))
    pull(images, shelf, LocalImage("owners", ("a:2",)))
    pull(images, shelf, name="gone:1")
    pull(images, shelf, name="a:1")
    record = Record(tmp_path / "lib")
    assert (list(record.all()), record.pulling()) == (["new"], {})


@pytest.mark.parametrize("comes", ["before the kill", "after it", "never"])
def test_what_a_killed_life_pulled_is_ours_in_the_next(tmp_path: Path, comes: str) -> None:
    shelf = Shelf(LocalImage("owners", ("mine:1",)))
    with images_of(shelf, tmp_path, 100).pulling("a:1"):
        if comes == "before the kill":
            shelf.local.append(LocalImage("new", ("a:1",)))
        later = images_of(shelf, tmp_path, 100)  # what the disk says now is what a kill leaves
        assert later.is_due(0.0)
        if comes == "after it":
            shelf.local.append(LocalImage("new", ("a:1",)))
        later.tidying("", set(), 0.0)()
        record = Record(tmp_path / "lib")
        assert list(record.all()) == ([] if comes == "never" else ["new"])
        assert record.pulling() == {}


def test_a_pull_that_is_under_way_is_not_settled(tmp_path: Path) -> None:
    shelf = Shelf()
    images = images_of(shelf, tmp_path, 100)
    with images.pulling("a:1"):
        with images.pulling("a:1"):  # the one before was given up, and hangs
            pass
        images.tidying("", set(), 0.0)()
        shelf.local.append(LocalImage("new", ("a:1",)))
    assert list(Record(tmp_path / "lib").all()) == ["new"]


def test_an_engine_that_goes_away_at_the_end_of_a_pull_loses_nothing(tmp_path: Path) -> None:
    shelf = Shelf()
    images = images_of(shelf, tmp_path, 100)
    coming = images.pulling("a:1")
    coming.__enter__()
    shelf.local.append(LocalImage("new", ("a:1",)))
    shelf.is_away = True
    with pytest.raises(EngineAwayError):
        coming.__exit__(None, None, None)
    shelf.is_away = False
    images.tidying("", set(), 0.0)()
    assert list(Record(tmp_path / "lib").all()) == ["new"]


def test_with_nothing_of_ours_nobody_looks(tmp_path: Path) -> None:
    shelf = Shelf()
    images = images_of(shelf, tmp_path, 1)
    assert not images.is_due(0.0)
    pull(images, shelf, LocalImage("i", ("a:1",)))
    assert images.is_due(0.0)
    images.tidying("", set(), 10.0)
    assert not images.is_due(10.0 + LOOK_EACH_S - 1)
    assert images.is_due(10.0 + LOOK_EACH_S)
    images.look_soon()
    assert images.is_due(10.0)


def test_below_the_limit_nothing_goes(tmp_path: Path) -> None:
    shelf = Shelf()
    pull(images_of(shelf, tmp_path, 100), shelf, LocalImage("i", ("a:1",)))
    age(tmp_path)
    images_of(shelf, tmp_path, 100).tidying("", set(), 0.0)()
    assert shelf.removed == []
    assert used_pct(tmp_path) > 1, "the tests' own disk is too empty for the next one"


def test_above_it_what_may_go_goes_and_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    shelf = Shelf()
    images = images_of(shelf, tmp_path, 1)
    for name in ("i", "k", "l"):
        pull(images, shelf, LocalImage(name, (f"{name}:1",)))
    age(tmp_path)
    images = images_of(shelf, tmp_path, 1)
    images.use("docker.io/library/l:1")  # just now
    images.tidying("", {"k:1"}, 0.0)()
    assert shelf.removed == ["i:1"]
    del shelf.local[0]
    images.tidying("", set(), 0.0)()
    assert shelf.removed == ["i:1", "k:1"]
    assert list(Record(tmp_path / "lib").all()) == ["k", "l"]
