"""Every refusal and failure: one table, and nothing is said that is not in it."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import sentences
from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.sentences import MOST_CHARACTERS, SENTENCES, Cause, Refusal, Sentence

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TABLE = Path("shared/sentences.py")
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("shared", "procs")
    for path in (ROOT / folder).rglob("*.py")
    if "pb" not in path.parts
)
MADE_ONLY_IN = {  # what carries a reason or an error, and the one file that makes it of a sentence
    "Said": {"shared/sentences.py"},
    "Stop": {"procs/executor/verdict.py"},
    "Verdict": {"procs/executor/verdict.py"},
    "Report": {"procs/executor/final_report.py"},
    "TaskAssignmentResponse": {"procs/master_link/desk.py"},
}
LEAST_ADVICE = 12  # characters: more than a word
EACH = pytest.mark.parametrize("name", SENTENCES)
Any = Sentence[Refusal] | Sentence[TaskPhase]


def said(one: Any, value: str) -> str:
    return one.say(**dict.fromkeys(one.fields, value)).text


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def sayings() -> Iterator[tuple[str, str, ast.Call]]:
    """(where, name of the sentence, call) of each `sentences.NAME.say(…)`."""
    for path in FILES:
        for call in calls(path):
            match call.func:
                case ast.Attribute(
                    value=ast.Attribute(value=ast.Name(id="sentences"), attr=name), attr="say"
                ):
                    yield f"{path}:{call.lineno}", name, call


# ------------------------------------------------------------------ the table


@EACH
def test_a_sentence_says_what_happened_and_what_to_do(name: str) -> None:
    one = SENTENCES[name]
    assert len(one.what) > LEAST_ADVICE or one.fields
    assert len(one.to_do) > LEAST_ADVICE
    for half in (one.what, one.to_do):
        assert half == half.strip()
        assert not half.endswith((".", ";", ","))
        assert half.isprintable()
    assert ";" not in one.what, "the first one parts what happened from what to do"


@EACH
def test_a_failure_has_a_cause_and_nothing_else_has(name: str) -> None:
    one = SENTENCES[name]
    assert (one.cause is not Cause.NONE) is (one.code is TaskPhase.FAILED)
    assert isinstance(one.code, Refusal) or one.code.is_final
    assert one.code is not TaskPhase.SUCCEEDED


def test_no_two_say_the_same() -> None:
    wholes = Counter((one.code, one.cause, one.what, one.to_do) for one in SENTENCES.values())
    assert [whole for whole, count in wholes.items() if count > 1] == []


def test_the_codes_are_the_contracts() -> None:
    causes = {name.removeprefix("FAILURE_CAUSE_") for name, _ in pb.FailureCause.items()}
    refusals = {name.removeprefix("REFUSAL_") for name, _ in pb.Refusal.items()}
    assert {c.upper() for c in Cause if c} == causes - {"UNSPECIFIED"}
    assert {str(r) for r in Refusal} == refusals - {"UNSPECIFIED"}


def test_every_code_and_cause_has_a_sentence() -> None:
    ends = {phase for phase in TaskPhase if phase.is_final} - {TaskPhase.SUCCEEDED}
    assert {one.code for one in SENTENCES.values()} == {*Refusal, *ends}
    assert {one.cause for one in SENTENCES.values()} == set(Cause)


def test_readme_lists_them_all() -> None:
    assert sentences.table() in README, "print it: python -c 'from shared import sentences as s; print(s.table())'"  # noqa: E501


# ------------------------------------------------------------------ how they are said


@EACH
def test_it_fits_whatever_its_values_are(name: str) -> None:
    one = SENTENCES[name]
    text = said(one, "a word of a stranger, " * 1000)
    assert len(text) <= MOST_CHARACTERS
    assert text.endswith(one.to_do.rpartition("}")[2])


@given(st.text(st.characters()), st.sampled_from(sorted(SENTENCES)))
def test_it_is_one_printable_line_whatever_its_values_are(value: str, name: str) -> None:
    text = said(SENTENCES[name], value)
    assert text.isprintable()
    assert len(text) <= MOST_CHARACTERS
    text.encode()


def test_short_values_stay_whole_beside_long_ones() -> None:
    text = sentences.IMAGE_NOT_PULLED.say(image="team/tool:3", words="no " * 999).text
    assert "image team/tool:3 could not be pulled: no no" in text
    assert len(text) == MOST_CHARACTERS


def test_a_value_ends_no_sentence_and_is_no_template() -> None:
    text = sentences.INPUT_MISSING.say(path="{x}", words="the master has\nit {not}.;").text
    assert text.startswith("input '{x}': the master has it {not}; submit")


@pytest.mark.parametrize("values", [{}, {"image": 1, "more": 2}, {"words": 1}])
def test_a_value_too_many_or_too_few_is_a_fault(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is said with"):
        sentences.COMMAND_MISSING.say(**values)


# ------------------------------------------------------------------ nothing else is said


def test_each_is_said_somewhere() -> None:
    assert {name for _, name, _ in sayings()} == SENTENCES.keys()


def test_each_is_said_with_its_values() -> None:
    for where, name, call in sayings():
        given_values = [keyword.arg for keyword in call.keywords]
        assert not call.args, where
        assert set(given_values) == SENTENCES[name].fields, where


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_reason_and_no_error_is_made_without_a_sentence(path: Path) -> None:
    """`Refused`, `Invalid`, `Malformed`, InputError … take a `Said`: mypy holds them to it."""
    for call in calls(path):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        assert str(path) in MADE_ONLY_IN.get(name, {str(path)}), f"{path}:{call.lineno} {name}"


def test_the_rule_finds_what_breaks_it() -> None:
    made = {name for path in FILES for name in MADE_ONLY_IN if name in (ROOT / path).read_text()}
    assert made == MADE_ONLY_IN.keys()
    assert {str(path) for path in FILES} >= set().union(*MADE_ONLY_IN.values())
