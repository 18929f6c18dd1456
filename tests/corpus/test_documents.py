import json
import random

import pytest

from workbench.corpus.documents import Corpus, Document, Notice, Page, Section, Skipped
from workbench.errors import InputError

TEXT = "# A\none\n## B\ntwo\n# C\nthree"
SECTIONS = (Section("A", 1, 0, 17), Section("B", 2, 8, 17), Section("C", 1, 17, 26))


def document(id: str = "a.md", **fields) -> Document:
    return Document(id, TEXT, "A", **fields)


def test_section_at_gives_the_smallest_section_around_an_offset():
    found = document(sections=SECTIONS)
    for offset in range(len(TEXT)):
        around = [s for s in SECTIONS if s.start <= offset < s.stop]
        assert found.section_at(offset) == min(around, key=lambda s: s.stop - s.start)


def test_section_at_looks_behind_a_short_section_for_the_one_around_it():
    found = document(sections=(Section("A", 1, 0, 20), Section("B", 2, 2, 4)))
    assert found.section_at(3).title == "B"
    assert found.section_at(10).title == "A"
    assert found.section_at(20) is None


def test_no_section_holds_the_end_of_the_text_or_what_is_outside():
    found = document(sections=SECTIONS)
    assert found.section_at(len(TEXT)) is None
    assert found.section_at(-1) is None
    assert document().section_at(0) is None


def test_page_at_gives_the_page_and_never_an_empty_one():
    pages = (Page(1, 0, 8), Page(2, 8, 8), Page(3, 8, 26))
    found = document(pages=pages)
    assert [found.page_at(offset).number for offset in (0, 7, 8, 25)] == [1, 1, 3, 3]


@pytest.mark.parametrize(
    "fields",
    [
        {"sections": (Section("A", 1, 0, 27),)},
        {"pages": (Page(1, 0, 27),)},
        {"sections": (Section("B", 2, 8, 17), Section("A", 1, 0, 17))},
    ],
    ids=["section too long", "page too long", "not sorted"],
)
def test_spans_that_do_not_fit_the_text_are_refused(fields):
    with pytest.raises(ValueError, match=r"'a\.md'"):
        document(**fields)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2)])
def test_a_span_counts_from_zero_and_does_not_run_backwards(start, stop):
    with pytest.raises(ValueError, match=f"{start}:{stop}"):
        Section("A", 1, start, stop)
    with pytest.raises(ValueError, match=f"{start}:{stop}"):
        Page(1, start, stop)


def test_a_document_survives_json():
    found = Document(
        "ö/日本.md",
        "é😀\r\n",
        "T",
        (Section("A", 1, 0, 4),),
        (Page(1, 0, 4),),
        "de",
        "00",
        "cp1252",
        "markdown",
    )
    assert Document.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_corpus_takes_an_id_a_stem_or_a_path_without_suffix():
    corpus = Corpus((document("manual/pump.md"), document("log.txt")))
    for name in ("manual/pump.md", "pump", "manual/pump"):
        assert corpus[name].id == "manual/pump.md"
    assert corpus["log"].id == "log.txt"


def test_an_id_wins_over_an_equal_stem():
    corpus = Corpus((document("notes"), document("a/notes.md")))
    assert corpus["notes"].id == "notes"


def test_an_ambiguous_stem_lists_the_matches():
    corpus = Corpus((document("a/pump.md"), document("b/pump.txt"), document("c.md")))
    with pytest.raises(InputError, match="2 documents") as raised:
        corpus["pump"]
    assert "'a/pump.md', 'b/pump.txt'" in str(raised.value)
    assert "c.md" not in str(raised.value)


def test_an_unknown_name_suggests_a_close_one():
    corpus = Corpus((document("incident-report.md"), document("x.md")))
    with pytest.raises(InputError, match=r"perhaps 'incident-report\.md'"):
        corpus["incident-repor"]


def test_an_unknown_name_without_a_close_one_lists_at_most_five_ids():
    corpus = Corpus(tuple(document(f"{i}.md") for i in range(9)))
    with pytest.raises(InputError, match="and 4 more") as raised:
        corpus["completely different"]
    assert str(raised.value).count(".md") == 5


def test_a_corpus_iterates_in_order_and_has_a_length():
    documents = (document("a.md"), document("b.md"))
    corpus = Corpus(documents)
    assert tuple(corpus) == documents
    assert len(corpus) == 2


def test_the_table_of_a_corpus_escapes_everything_that_files_say():
    evil = "<script>alert('x')</script>"
    corpus = Corpus(
        (Document(f"{evil}.md", "x", evil),),
        (Skipped(evil, evil),),
        (Notice(f"{evil}.md", evil),),
    )
    page = corpus._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5


def test_all_notices_of_a_document_stand_in_its_row():
    corpus = Corpus((document(),), (), (Notice("a.md", "first"), Notice("a.md", "second")))
    assert "first; second" in corpus._repr_html_()


@pytest.mark.parametrize("record", [Skipped("a\nb\x1b.txt", "why"), Notice("a\nb\x1b.txt", "why")])
def test_a_message_stays_on_one_line_whatever_the_name(record):
    assert str(record) == r"'a\nb\x1b.txt': why"


def test_reprs_are_one_line_and_name_the_next_step():
    pages = (Page(1, 0, 8), Page(2, 8, 26))
    for record in (
        document("a\nb.md", pages=pages, sections=SECTIONS),
        Corpus(()),
        Corpus((document(),)),
    ):
        assert "\n" not in repr(record)
        assert "; next: " in repr(record)


def test_innermost_sections_agree_with_a_plain_search_on_random_trees():
    choose = random.Random(0)

    def grow(start, stop, level):
        sections = []
        while stop - start > 2 and choose.random() < 0.7:
            first = choose.randint(start, stop - 2)
            last = choose.randint(first + 1, stop)
            sections += [Section(str(first), level, first, last), *grow(first + 1, last, level + 1)]
            start = last
        return sections

    for _ in range(100):
        sections = tuple(grow(0, len(TEXT), 1))
        found = document(sections=sections)
        for offset in range(len(TEXT)):
            around = [s for s in sections if s.start <= offset < s.stop]
            assert found.section_at(offset) == (
                max(around, key=lambda s: s.level) if around else None
            )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"id": ""}, "the id of a document is ''; give it a name"),
        ({"id": None}, "the id of a document is None"),
        ({"id": 5}, "the id of a document is 5"),
        ({"text": b"x"}, "the text of document 'a' is bytes"),
        ({"metadata": "x"}, "the metadata of document 'a' is str"),
    ],
)
def test_a_document_that_is_none_is_refused_when_it_is_made(facts, message):
    with pytest.raises(ValueError, match=message):
        Document(**{"id": "a", "text": "A.", **facts})


def test_what_names_no_document_is_refused():
    corpus = Corpus((Document("a.txt", "A."),))
    for name in (None, 5, ["a"]):
        with pytest.raises(InputError, match=r"names no document; give an id, such as 'a\.txt'"):
            corpus[name]
