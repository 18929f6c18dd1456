"""Marks to spans: every form of mark, before and after a sentence, and marks that lead nowhere."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.corpus.chunks import Chunk, chunk_id
from workbench.corpus.documents import Document
from workbench.generation.prompts import Source
from workbench.grounding.abstention import is_abstention
from workbench.grounding.citations import parse_citations
from workbench.grounding.support import find_support

TEXT = "Valve V-14 failed at 22:47. The pump P3 tripped at 23:05. Nobody was hurt in Dyke Lane."


@pytest.fixture(scope="module")
def evidence() -> SimpleNamespace:
    document = Document(
        id="report.txt",
        text=TEXT,
        title="report",
        sections=(),
        pages=(),
        language="en",
        sha256=hashlib.sha256(TEXT.encode()).hexdigest(),
        encoding="utf-8",
        format="txt",
    )
    sources, at = [], 0
    for n, sentence in enumerate(
        ["Valve V-14 failed at 22:47.", "The pump P3 tripped at 23:05.", TEXT[58:]], start=1
    ):
        start = TEXT.index(sentence)
        sources.append(
            Source(
                n,
                Chunk(
                    document.id,
                    start,
                    start + len(sentence),
                    sentence,
                    chunk_id(document.id, sentence, 1),
                ),
                sentence,
                at,
                at + len(sentence),
                start,
                start + len(sentence),
                0,
                1,
            )
        )
    return SimpleNamespace(documents={document.id: document}, sources=sources)


def parse(evidence, text):
    return parse_citations(text, evidence.sources, documents=evidence.documents)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It failed at 22:47 [1].", [1]),
        ("It failed at 22:47. [1]", [1]),
        ("[1] It failed at 22:47.", [1]),
        ("Both [1,2].", [1, 2]),
        ("Both [1, 2].", [1, 2]),
        ("All [1-3].", [1, 2, 3]),
        ("All [1–3].", [1, 2, 3]),
        ("Both [1][2].", [1, 2]),
        ("Twice [2] and [2].", [2, 2]),
        ("None at all.", []),
    ],
)
def test_forms_of_marks(evidence, text, numbers):
    report = parse(evidence, text)
    assert [c.n for c in report.citations] == numbers
    assert not report.unmatched
    for c in report.citations:
        assert str(c.n) in text[c.answer_start : c.answer_stop] or "-" in text or "–" in text
        assert evidence.documents[c.document_id].text[c.start : c.stop] == c.text


@pytest.mark.parametrize(
    ("text", "found", "lost"),
    [
        ("Zero [0].", [], [0]),
        ("Far [99].", [], [99]),
        ("Over [2-9].", [2, 3], [9]),
        ("[1,7] One.", [1], [7]),
    ],
)
def test_numbers_without_a_source_are_reported(evidence, text, found, lost):
    report = parse(evidence, text)
    assert [c.n for c in report.citations] == found
    assert [u.n for u in report.unmatched] == lost
    assert all(u.reason for u in report.unmatched)


def test_a_huge_range_is_not_expanded(evidence):
    assert len(parse(evidence, "All [1-999999].").citations) == 3


def test_marks_after_sentences_belong_to_the_sentence_before(evidence):
    text = "It failed at 22:47. [1] The pump tripped at 23:05. [2] Why is unknown."
    report = parse(evidence, text)
    claims = [text[c.sentence_start : c.sentence_stop] for c in report.citations]
    assert claims == ["It failed at 22:47.", "The pump tripped at 23:05."]
    assert [text[a:b] for a, b in report.uncited] == ["Why is unknown."]


def test_marks_before_sentences_belong_to_the_sentence_after(evidence):
    text = "[1] It failed at 22:47. [2] The pump tripped at 23:05."
    claims = [text[c.sentence_start : c.sentence_stop] for c in parse(evidence, text).citations]
    assert claims == ["It failed at 22:47.", "The pump tripped at 23:05."]


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ("Valve V-14 failed at 22:47", "verbatim"),
        ("The valve V-14 had failed by 22:47.", "supported"),
        ("Valve V-14 failed at 22:48.", "unsupported"),
        ("Bananas are yellow fruit.", "unsupported"),
    ],
)
def test_verdicts(evidence, claim, verdict):
    (citation,) = parse(evidence, f"{claim} [1]").citations
    assert citation.verdict == verdict


def test_best_support_is_the_sentence_with_the_claims_words():
    spans = [(0, 27), (28, 57), (58, len(TEXT))]
    assert TEXT[slice(*spans[1])].startswith("The pump")
    assert (find_support("P3 tripped", TEXT, spans).start) == 28
    assert find_support("at 23:05", TEXT, spans).missing_numbers == ()


@given(st.text(alphabet="ab .[]0123456789,-–\n", max_size=60))
def test_any_answer_is_parsed_and_spans_stay_inside(evidence, text):
    report = parse(evidence, text)
    for c in report.citations:
        assert 0 <= c.sentence_start <= c.sentence_stop <= len(text)
        assert text[c.answer_start] == "["
        assert text[c.answer_stop - 1] == "]"
    for start, stop in report.uncited:
        assert text[start:stop].strip() == text[start:stop]


@pytest.mark.parametrize(
    ("text", "abstains"),
    [
        ("The passages do not say.", True),
        ("[4] The passages do not say", True),
        ("the passages do not say …", True),
        ("The passages do not say why [2] it failed.", False),
        ("", False),
    ],
)
def test_abstention(text, abstains):
    assert is_abstention(text) is abstains
