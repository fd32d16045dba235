"""Requirement lines: what a node installs, and what it refuses."""

import pytest

from shared.requirements import fault, normalised


@pytest.mark.parametrize(
    ("line", "spelled"),
    [
        pytest.param("Numpy >=2 , <3", "numpy<3,>=2", id="spaces and case"),
        pytest.param("a_b.C", "a-b-c", id="one spelling of a name"),
        pytest.param("x[b,a]==1", "x[a,b]==1", id="extras"),
        pytest.param("x; os_name == 'posix'", 'x; os_name == "posix"', id="marker"),
        pytest.param("x==1 # why", "x==1", id="comment"),
        pytest.param("n @ https://h/n.whl#sha256=12", None, id="address"),
    ],
)
def test_taken_in_one_spelling(line: str, spelled: str | None) -> None:
    assert fault(line) is None
    assert normalised([line]) == (spelled or line,)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param("-i https://h", "no options of pip", id="index"),
        pytest.param("  --find-links=/etc", "no options of pip", id="after spaces"),
        pytest.param("-e .", "no options of pip", id="editable"),
        pytest.param("-r /etc/passwd", "no options of pip", id="another file"),
        pytest.param("x==1 --hash=sha256:00", "must be a requirement", id="option behind"),
        pytest.param("./x", "must be a requirement", id="path"),
        pytest.param("/etc/x.whl", "must be a requirement", id="absolute path"),
        pytest.param("https://h/x.whl", "must be a requirement", id="address without a name"),
        pytest.param("", "must be a requirement", id="nothing"),
        pytest.param("# x", "must be a requirement", id="only a comment"),
        pytest.param("x @ FILE:///etc/x", "https://", id="file of the host"),
        pytest.param("x @ http://h/x.whl", "https://", id="http"),
        pytest.param("x @ git+https://h/x", "https://", id="git"),
        pytest.param("x @ https:///x.whl", "https://", id="no host"),
        pytest.param("x @ https://[h/x.whl", "https://", id="broken host"),
        pytest.param("x @ https://evil/${PIP_INDEX_URL}", "printable", id="the owner's password"),
        pytest.param("x @ https://h/x\\", "printable", id="goes on in the next line"),
        pytest.param("x\n-r y", "printable", id="two lines"),
        pytest.param(f"x; {'(' * 5000}a == 'b'{')' * 5000}", "must be", id="brackets in brackets"),
    ],
)
def test_refused(line: str, why: str) -> None:
    said = fault(line)
    assert said is not None
    assert why in said
    with pytest.raises(ValueError, match=r"must|begins"):
        normalised([line])


def test_order_and_repetition_make_no_difference() -> None:
    assert normalised(["b", "A", "a"]) == normalised(["a", "b"]) == ("a", "b")
