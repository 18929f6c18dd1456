from __future__ import annotations

import random
import re

import pytest

from workbench.pocket.data import example
from workbench.pocket.passages import World
from workbench.pocket.scenes import _distinct, _parse, _run, _told, scenes
from workbench.pocket.thesaurus import lines_of, other_words, reworded

SCENE = """# The lathe of {A:person}
{A} bought the [old|worn] lathe in {B:year} for {C:money}.
? How much did {A} pay? > {C}
? Was it new? > no: [old|worn]
It ran until the belt of [X=hemp|leather] broke.
? What was the belt made of? > {X}
The repair took {D:small} days.
? How long was it out of use? > {D} days
! Who sold the lathe?"""
LANGUAGES = ("en", "de", "fr", "es", "it")


def _world(seed: int, split: str = "train") -> World:
    return World(random.Random(seed), split)


def test_slots_and_choices_are_the_same_throughout_a_telling() -> None:
    for seed in range(20):
        told = _told(_world(seed), _parse(SCENE))
        first, second, third = told.units
        assert "{" not in told.header + "".join(u.text for u in told.units)
        price, new = first.asks
        assert first.text.endswith(f"for {price.short}.")
        assert new.verdict == "no"
        assert f"the {new.short} lathe" in first.text
        assert f"belt of {second.asks[0].short} broke" in second.text
        assert third.text == f"The repair took {third.asks[0].short}."
        assert len(told.missing) == 1


def test_tellings_differ_in_their_values() -> None:
    told = [_told(_world(seed), _parse(SCENE)).units[0].text for seed in range(8)]
    assert len(set(told)) == 8


def test_questions_of_sentences_left_out_have_no_answer() -> None:
    for seed in range(30):
        world = _world(seed)
        told = _told(world, _parse(SCENE))
        run = _run(world, told)
        kept = {a.question for u in run.units for a in u.asks}
        gone = {a.question for u in told.units for a in u.asks} - kept
        assert gone <= set(run.missing)
        assert not kept & set(run.missing)
        assert 2 <= len(run.units) <= 3


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_answer_stands_in_its_sentence(language: str) -> None:
    """What the parser would drop silently: an answer that its sentence does not hold."""
    for held_out in (False, True):
        for scene in scenes(language, held_out=held_out):
            told = _told(_world(5), scene)
            assert len(scene.sentences) >= 4, scene.title
            assert not re.search(r"\{[A-Z]", "".join(u.text for u in told.units)), scene.title
            for sentence, unit in zip(scene.sentences, told.units, strict=True):
                assert len(unit.asks) == len(sentence.asks), (scene.title, sentence.text)
                assert all(ask.short in unit.text for ask in unit.asks)


def test_scenes_are_many_and_one_in_twelve_is_held_out() -> None:
    trained, held = (
        sum(len(scenes(name, held_out=h)) for name in LANGUAGES) for h in (False, True)
    )
    assert trained > 1200
    assert 0.06 < held / (trained + held) < 0.11


def test_a_scene_told_twice_is_asked_about_by_what_only_one_telling_has() -> None:
    world = _world(3)
    told = [_told(world, _parse(SCENE)) for _ in range(2)]
    payers = [t.header.removeprefix("The lathe of ").split(" › ")[0] for t in told]
    both = _distinct(*told)
    for passage, payer in zip(both, payers, strict=True):
        asked = [ask.question for unit in passage.units for ask in unit.asks]
        assert [payer.lower() in question.lower() for question in asked] == [True]
        assert [u.text for u in passage.units] in [[u.text for u in t.units] for t in told]
        assert not passage.missing  # "Who sold the lathe?" is as open in one as in the other


def test_yes_and_no_stand_before_the_span_that_decides() -> None:
    answers = {
        turn.answer.split("] ")[1].split(": ")[0]
        for seed in range(40)
        for turn in example(seed=seed, units=8, family="scenes", style="free", turns=10).turns
        if turn.unit and re.match(r"\[\d+\] (Yes|No): ", turn.answer)
    }
    assert answers == {"Yes", "No"}


def test_thesaurus_gives_a_form_for_a_form() -> None:
    assert "purchased" in other_words()["bought"]
    assert "purchases" in other_words()["buys"]
    assert "vehicle" in other_words()["car"]
    assert "car" not in other_words().get(
        "vehicle", ()
    )  # the general word is not replaced by the special
    assert set(lines_of()["decided"]) & set(lines_of()["decision"])
    assert reworded(random.Random(1), "Anna bought it", 1.0) != "Anna bought it"
    assert reworded(random.Random(1), "Bought", 1.0) == "Bought"  # a name, for all it knows
