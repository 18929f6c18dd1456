"""Hold the corpus and its questions to their rules. Knows no workbench: reads the files as is.

An answer is quoted from its evidence, in the language of the document, so that one test can check
all of them. Offsets count characters of the decoded file; for HTML and notebooks the text is
extracted by a reader, so those two may be distractors without a span, never evidence.
"""

from __future__ import annotations

import ast
import csv
import doctest
import html
import json
import re
import runpy
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

CORPORA = Path(__file__).resolve().parent.parent / "corpora"
QUESTIONS = CORPORA / "questions.jsonl"
LONG_DOCUMENT = "incident-report.md"
EXTRACTED_SUFFIXES = (".html", ".ipynb")
LANGUAGE_OF_FOLDER = {"de": "de", "fr": "fr", "es": "es"}

# Function words only: a question and its evidence may share these without giving the place away.
STOP_WORDS = {
    "en": """a about after all also an and any are as at be because been before being but by can did
        do does during each even every for from had has have having he her here herself him himself
        his how i if in into is it its itself just many may me might more most much must my no nor
        not of off on once one only or other our out over own per shall she should so some such than
        that the their them then there these they this those though through to too under until up
        very was we were what when where whether which while who whom whose why will with without
        would you your s""",
    "de": """aber als am an auch auf aus bei bis das dass dem den der des die doch ein eine einem
        einen einer eines er es fand findet für hat ich im in ist ist mit nach nicht noch nur oder
        sich sie sind so um und unter vom von vor war waren warum was welche welchem welcher welches
        wann wer wie wird wo woran zu zum zur""",
    "fr": """à au aux avec ce cela ces cet cette combien comment d dans de depuis des du elle en est
        et il ils l la le les leur lorsque mais même n ne nous on ont ou où par pas pour qu quand
        que quel quelle quels qui s sa se ses son sont sur un une y""",
    "es": """a al con cómo cuál cuánta cuántas cuánto cuántos de del desde dónde el ella en era es
        esta este ha hasta hay la las le les lo los más me muy no o para pero por qué que quién se
        si sin su sus un una y ya""",
}
ALL_STOP_WORDS = frozenset(" ".join(STOP_WORDS.values()).split())


@cache
def read_text(document_id: str) -> str:
    return (CORPORA / document_id).read_bytes().decode("utf-8")


def is_hidden(path: Path) -> bool:
    hidden = (".", "__pycache__", QUESTIONS.name)
    return any(part.startswith(hidden) for part in path.parts)


@cache
def document_ids() -> tuple[str, ...]:
    files = (path.relative_to(CORPORA) for path in CORPORA.rglob("*") if path.is_file())
    return tuple(sorted(path.as_posix() for path in files if not is_hidden(path)))


@cache
def read_questions() -> tuple[dict, ...]:
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def answerable() -> list[dict]:
    return [question for question in read_questions() if question["answerable"]]


def unanswerable() -> list[dict]:
    return [question for question in read_questions() if not question["answerable"]]


def quote(span: dict) -> str:
    return read_text(span["document"])[span["start"] : span["stop"]]


def language_of(document_id: str) -> str:
    return LANGUAGE_OF_FOLDER.get(document_id.split("/")[0], "en")


def content_words(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+(?:[.,-][^\W_]+)*", text.casefold())
    return [word for word in words if word not in ALL_STOP_WORDS]


def shares_two_words(question: dict) -> bool:
    """Say whether two consecutive content words of the question stand so in its evidence."""
    asked = set(pairwise(content_words(question["question"])))
    written = set(pairwise(content_words(quote(question["evidence"]))))
    return bool(asked & written)


def count_words(document_id: str) -> int:
    """Count words as a reader would meet them: no tags, no notebook plumbing, cells of a table."""
    text = read_text(document_id)
    if document_id.endswith(".ipynb"):
        text = " ".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    if document_id.endswith(".html"):
        text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL)
        text = html.unescape(text)
    if document_id.endswith(".csv"):
        return len(re.findall(r"[\w.'-]+", text))
    return len(text.split())


def contains(passage: str, answer: str) -> bool:
    """Say whether the answer stands in the passage as whole words, whatever the case."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", passage, re.IGNORECASE))


def where(question: dict) -> str:
    return f"{QUESTIONS.name}: {question['id']} {question['question']!r}"


def test_documents_are_short_but_for_one_of_ten_thousand_words():
    words = {document_id: count_words(document_id) for document_id in document_ids()}
    assert words.pop(LONG_DOCUMENT) >= 10_000
    assert len(words) >= 17
    wrong = {name: count for name, count in words.items() if not 300 <= count <= 1_500}
    assert not wrong


def test_three_languages_stand_beside_english():
    for document_id in document_ids():
        words = Counter(re.findall(r"\w+", read_text(document_id).casefold()))
        expected = language_of(document_id)
        if expected == "en" and not document_id.endswith((".md", ".txt", ".html")):
            continue
        scores = {
            language: sum(words[word] for word in set(stop_words.split()))
            for language, stop_words in STOP_WORDS.items()
        }
        assert max(scores, key=scores.__getitem__) == expected, (document_id, scores)
    assert {language_of(document_id) for document_id in document_ids()} >= {"de", "en", "es", "fr"}


def test_only_documents_are_left_to_index():
    patterns = (CORPORA / ".workbenchignore").read_text(encoding="utf-8").splitlines()
    assert "questions.jsonl" in patterns
    assert not [name for name in document_ids() if "readme" in name.casefold()]


def test_gauge_table_is_whole():
    rows = list(csv.DictReader(read_text("data/gauges.csv").splitlines()))
    columns = "station lat lon installed datum_m highest_m highest_on keeper battery".split()
    assert len(rows) >= 25
    assert list(rows[0]) == columns
    assert all(all(row[column] for column in columns) for row in rows)
    assert len({row["station"] for row in rows}) == len(rows)


def test_ferry_incidents_have_one_shape():
    incidents = [json.loads(line) for line in read_text("data/ferry-incidents.jsonl").splitlines()]
    assert len(incidents) >= 20
    keys = "date vessel event cause delay_minutes note".split()
    assert all(list(incident) == keys for incident in incidents)
    dates = [incident["date"] for incident in incidents]
    assert dates == sorted(dates)


def test_notebook_is_valid_and_has_no_outputs():
    notebook = json.loads(read_text("notebook/salinity.ipynb"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"code", "markdown"}
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse("".join(cell["source"]))


def test_python_document_runs_and_its_examples_hold():
    module = runpy.run_path(str(CORPORA / "code/tidewatch.py"))
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    examples = finder.find(module["drop_spikes"], "drop_spikes", globs=module)
    examples.append(
        doctest.DocTestParser().get_doctest(module["__doc__"], module, "tidewatch", None, None)
    )
    results = [runner.run(example) for example in examples]
    assert sum(result.attempted for result in results) >= 3
    assert not any(result.failed for result in results)


def test_every_question_has_the_agreed_fields():
    fields = "id question language answer answerable evidence tags distractor".split()
    questions = read_questions()
    assert [question["id"] for question in questions] == [
        f"q{number:03d}" for number in range(1, len(questions) + 1)
    ]
    for question in questions:
        assert list(question)[: len(fields)] == fields, where(question)
        assert question["language"] in STOP_WORDS, where(question)
        assert question["tags"], where(question)
    texts = [question["question"].casefold() for question in questions]
    assert len(set(texts)) == len(texts)


def test_there_are_enough_questions_of_each_kind():
    tags = Counter(tag for question in answerable() for tag in question["tags"])
    assert len(answerable()) >= 75
    assert tags["synonym"] >= 15
    assert tags["number"] >= 10
    assert tags["cross-language"] >= 10
    absent = Counter(tag for question in unanswerable() for tag in question["tags"])
    assert 30 <= len(unanswerable()) <= 35
    assert absent["near-miss"] >= 15
    assert absent["near-miss"] + absent["absent"] == len(unanswerable())


def test_questions_are_spread_over_all_documents():
    asked = Counter(question["evidence"]["document"] for question in answerable())
    quotable = {name for name in document_ids() if not name.endswith(EXTRACTED_SUFFIXES)}
    assert set(asked) == quotable
    assert asked[LONG_DOCUMENT] >= 20
    assert min(asked.values()) >= 3


def test_evidence_is_a_whole_passage_of_its_document():
    for question in answerable():
        span = question["evidence"]
        text = read_text(span["document"])
        assert 0 <= span["start"] < span["stop"] <= len(text), where(question)
        evidence = quote(span)
        assert evidence == evidence.strip(), where(question)
        assert "\n" not in evidence and len(evidence) >= 12, where(question)
        before, after = text[: span["start"]][-1:], text[span["stop"] :][:1]
        assert not before.strip() and not after.strip(), where(question)


def test_answers_are_quoted_from_their_evidence():
    for question in answerable():
        evidence = quote(question["evidence"])
        assert contains(evidence, question["answer"]), where(question)
        assert len(question["answer"].split()) <= 12, where(question)


def test_distractors_stand_in_another_document_and_do_not_answer():
    for question in answerable():
        distractor = question["distractor"]
        assert distractor["document"] in document_ids(), where(question)
        assert distractor["document"] != question["evidence"]["document"], where(question)
        if distractor["document"].endswith(EXTRACTED_SUFFIXES):
            assert distractor["start"] is None and distractor["stop"] is None, where(question)
            continue
        passage = quote(distractor)
        assert passage.strip() and "\n" not in passage, where(question)
        assert not contains(passage, question["answer"]), where(question)


def test_few_questions_repeat_the_wording_of_their_evidence():
    sharing = [question["id"] for question in answerable() if shares_two_words(question)]
    assert len(sharing) * 3 <= len(answerable()), sharing


def test_cross_language_questions_cross_in_both_directions():
    crossing = [question for question in answerable() if "cross-language" in question["tags"]]
    directions = Counter(
        (question["language"], language_of(question["evidence"]["document"]))
        for question in crossing
    )
    others = {"de", "es", "fr"}
    assert {asked for asked, written in directions if written == "en"} == others
    assert {written for asked, written in directions if asked == "en"} == others
    for question in answerable():
        crosses = question["language"] != language_of(question["evidence"]["document"])
        assert crosses == ("cross-language" in question["tags"]), where(question)


def test_unanswerable_questions_carry_no_answer():
    for question in unanswerable():
        assert question["answer"] is None and question["evidence"] is None, where(question)
        if "near-miss" in question["tags"]:
            assert question["near"]["document"] in document_ids(), where(question)


def test_first_valve_is_found_in_the_incident_report():
    asked = [
        question for question in answerable() if question["question"] == "Which valve failed first?"
    ]
    assert len(asked) == 1
    assert asked[0]["evidence"]["document"] == LONG_DOCUMENT
    assert asked[0]["answer"] == "V-14"
    assert "first" in quote(asked[0]["evidence"])


@pytest.mark.parametrize("folder", sorted(LANGUAGE_OF_FOLDER))
def test_foreign_documents_are_asked_in_their_own_language_too(folder: str):
    asked = [
        question
        for question in answerable()
        if question["evidence"]["document"].startswith(f"{folder}/")
    ]
    assert folder in {question["language"] for question in asked}
