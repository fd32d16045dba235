"""Sets of GPUs as their owner writes them."""

import pytest

from shared.gpu_sets import GpuSetsError, Sets, is_set_name, parse_sets


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        pytest.param("", (), id="nothing"),
        pytest.param("0", (("0",),), id="one"),
        pytest.param("0,1;2,3", (("0", "1"), ("2", "3")), id="two sets"),
        pytest.param("0, GPU-8c187ec9-0f4d", (("0", "GPU-8c187ec9-0f4d"),), id="a UUID, a space"),
    ],
)
def test_sets_are_read(text: str, sets: Sets) -> None:
    assert parse_sets(text) == sets


@pytest.mark.parametrize(
    "text", ["0;;1", ",", "0,", "gpu0", "-1", "0 1", "MIG-1", "1;0,1", "GPU-a/b", "GPU-a b"]
)
def test_what_names_no_card_or_one_twice_is_refused(text: str) -> None:
    with pytest.raises(GpuSetsError):
        parse_sets(text)


def test_a_sets_name_is_gpu_and_its_number() -> None:
    names = ("gpu0", "gpu12", "gpu", "gpux", "gpu0/../x", "host", "gpu0\n")
    assert [name for name in names if is_set_name(name)] == ["gpu0", "gpu12"]
