from __future__ import annotations

import random
import re

import pytest

from workbench.pocket.data import ABSTENTION, FAMILIES, MAX_UNITS, Example, example
from workbench.pocket.events import is_held_out_pair
from workbench.pocket.names import Names, is_held_out
from workbench.pocket.prose import central_sentence, documents
from workbench.pocket.wordings import chosen, relations

SPLITS = ("train", "entities", "wordings", "relations")


def _examples(style: str | None = None) -> list[Example]:
    return [
        example(seed=f"test-{family}-{split}", units=9, family=family, split=split, style=style)
        for family in FAMILIES
        for split in SPLITS
    ]


def test_mark_points_to_the_sentence_that_holds_the_answer() -> None:
    for made in _examples("free"):
        for turn in made.turns:
            if turn.unit is not None:
                answer = turn.answer.removeprefix(f"[{turn.unit}] ")
                assert answer != turn.answer
                answer = re.sub(r"^(Yes|No): ", "", answer)
                assert answer in made.units[turn.unit - 1]


def test_quote_is_the_cited_line_of_the_evidence() -> None:
    for made in _examples("quote"):
        for turn in made.turns:
            if turn.unit is None:
                assert turn.answer == ABSTENTION
            else:
                assert turn.answer in made.evidence.split("\n")


def test_units_are_numbered_from_one_through_all_blocks() -> None:
    for made in _examples():
        marks = [int(m) for m in re.findall(r"^\[(\d+)\] ", made.evidence, re.MULTILINE)]
        assert marks == list(range(1, len(made.units) + 1))
        assert not any("\n" in unit for unit in made.units)
        for block in made.evidence.split("\n\n"):
            assert not block.startswith("[")


def test_same_seed_gives_the_same_example_and_another_seed_another() -> None:
    first, again, other = (example(seed=seed, units=12) for seed in (5, 5, 6))
    assert first == again
    assert first.evidence != other.evidence


@pytest.mark.parametrize("units", [0, MAX_UNITS + 1])
def test_number_of_units_beyond_the_marks_is_refused(units: int) -> None:
    with pytest.raises(ValueError, match="outside 1 to 64"):
        example(seed=1, units=units)


def test_abstentions_are_asked_about_things_the_evidence_does_not_state() -> None:
    """A table is the one family where this can be checked by string: the cell asked for must be absent."""
    for seed in range(20):
        made = example(seed=f"absent-{seed}", units=12, family="table", style="quote", abstain=1.0)
        for turn in made.turns:
            for name in re.findall(r"^\[\d+\] (?:\| )?(\w+)", made.evidence, re.MULTILINE):
                if turn.unit is None and name != "name" and re.search(rf"\b{name}\b", turn.line):
                    row = next(u for u in made.units if name in u)
                    head = [
                        u
                        for u in made.units[: made.units.index(row)]
                        if re.match(r"(\| )?name\b", u)
                    ][-1]
                    columns = re.findall(r"\w+", head)
                    assert not any(
                        re.search(rf"\b{c}\b", turn.line)
                        for c in columns
                        if c not in ("name", name)
                    )


def test_held_out_wordings_are_never_in_training() -> None:
    held = {relation.questions[-1].replace("{s}", "").strip(" ?") for relation in relations("en")}
    trained = {q.replace("{s}", "").strip(" ?") for r in relations("en") for q in r.questions[:-1]}
    assert not held & {q for q in trained if q in held and q not in _shared(trained, held)}
    made = "\n".join(example(seed=f"w{i}", units=12, family="facts").evidence for i in range(30))
    assert "came into the world on" not in made
    assert "was launched on" not in made


def _shared(trained: set[str], held: set[str]) -> set[str]:
    """Wordings that two relations have in common, such as "How old is": held out for one, trained for the other."""
    return trained & held


def test_held_out_names_and_pairs_are_disjoint_from_training() -> None:
    assert is_held_out("Kelm") == is_held_out("kelm")
    trained, held = (Names(random.Random(4), held_out=h) for h in (False, True))
    assert not {trained.word() for _ in range(50)} & {held.word() for _ in range(50)}
    assert {is_held_out_pair(v, o) for v in range(9) for o in range(9)} == {True, False}


@pytest.mark.slow
def test_held_out_documents_are_disjoint_from_training() -> None:
    train = {s for d in documents(held_out=False) for s in d}
    held = {s for d in documents(held_out=True) for s in d}
    assert len(train) > 1000
    assert len(held) > 100
    assert not train & held


def test_relations_are_many_and_worded_in_many_ways() -> None:
    assert len(relations("en")) >= 750
    assert len({r.name for r in relations("en")}) == len(relations("en"))
    assert sum(r.held_out for r in relations("en")) >= 60
    assert all(
        len(r.statements) >= 5 and len(r.questions) >= 5 for r in relations("en") if not r.held_out
    )


@pytest.mark.parametrize("language", ["en", "de", "fr", "es"])
def test_every_wording_holds_its_places_and_every_kind_can_be_drawn(language: str) -> None:
    names = Names(random.Random(1), held_out=False)
    for relation in relations(language):
        assert names.draw(relation.subject)
        assert names.draw(relation.object)
        for wording in relation.statements:
            assert (wording.count("{s}"), wording.count("{o}")) == (1, 1), (relation.name, wording)
        for wording in relation.questions:
            assert (wording.count("{s}"), wording.count("{o}")) == (1, 0), (relation.name, wording)


def test_choices_in_a_wording_are_made_and_options_leave_no_gap() -> None:
    rng = random.Random(3)
    made = {chosen(rng, "She [ran|fell] home [at noon].") for _ in range(40)}
    assert made == {
        f"She {verb} home{time}." for verb in ("ran", "fell") for time in ("", " at noon")
    }


def test_central_sentence_shares_most_words() -> None:
    texts = [
        "Rain fell.",
        "The pump and the valve of the pump station leak.",
        "The valve leaks.",
        "A pump station has a pump.",
    ]
    assert central_sentence(texts) == 1
