import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workbench.corpus.chunks import (
    Chunk,
    chunk_document,
    chunk_id,
    document_sentences,
    sentence_spans,
)
from workbench.corpus.documents import Document, Section
from workbench.corpus.sections import markdown_headings, sections_from

TOKEN = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> np.ndarray:
    """One token for a word or a mark, as most encoders begin."""
    return np.array([match.span() for match in TOKEN.finditer(text)]).reshape(-1, 2)


def letters(text: str) -> np.ndarray:
    """One token for each character that is not space."""
    return np.array([(i, i + 1) for i, letter in enumerate(text) if not letter.isspace()]).reshape(
        -1, 2
    )


def utf8(text: str) -> np.ndarray:
    """One token for each byte, space included, as byte-level tokenizers do at worst."""
    return np.array([(i, i + 1) for i, letter in enumerate(text) for _ in letter.encode()]).reshape(
        -1, 2
    )


def blind(text: str) -> np.ndarray:
    """One unknown token for everything between spaces, however long."""
    return np.array([match.span() for match in re.finditer(r"\S+", text)]).reshape(-1, 2)


def document(text: str, format: str = "text", **fields) -> Document:
    if format == "markdown":
        fields["sections"] = sections_from(markdown_headings(text), len(text))
    return Document("a.md", text, "a", format=format, **fields)


def texts_of(text: str, *, max_tokens: int, measure=words, format: str = "text") -> list[str]:
    return [
        c.text
        for c in chunk_document(document(text, format), measure=measure, max_tokens=max_tokens)
    ]


PIECES = st.sampled_from(
    """word Word .␣ The␣end.␣ One␣sentence␣more.␣ ⏎ ⏎⏎ ␍⏎ ␍⏎␍⏎ #␣A⏎ ##␣B⏎ ###␣C⏎ B⏎===⏎ -␣item⏎ |␣a␣|␣b␣|⏎ ```⏎
    x␣=␣1⏎ 😀 👩‍👩‍👧 e\u0301 日本。 \u200b Ben:␣ 1.␣ aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa""".split()
).map(lambda piece: piece.replace("␣", " ").replace("⏎", "\n").replace("␍", "\r"))
made_texts = st.lists(PIECES, max_size=40).map("".join)
documents = st.builds(
    document,
    st.one_of(st.text(max_size=120), made_texts),
    st.sampled_from(["text", "markdown", "code", "html"]),
)
measures = st.sampled_from([words, letters, utf8, blind])
sizes = st.integers(8, 60)


@settings(deadline=None, max_examples=150)
@given(documents, measures, sizes)
def test_chunks_are_exact_spans_in_order_that_hold_every_character_but_space(
    found, measure, max_tokens
):
    chunks = chunk_document(found, measure=measure, max_tokens=max_tokens)
    edges = [edge for chunk in chunks for edge in (chunk.start, chunk.stop)]
    assert edges == sorted(edges)
    outside = [
        found.text[a:b]
        for a, b in zip([0, *edges[1::2]], [*edges[::2], len(found.text)], strict=True)
    ]
    assert "".join(outside).strip() == ""
    for chunk in chunks:
        assert found.text[chunk.start : chunk.stop] == chunk.text == chunk.text.strip()
        assert chunk.document_id == found.id


@settings(deadline=None, max_examples=150)
@given(documents, measures, sizes)
def test_no_chunk_exceeds_the_tokens_asked_for_when_it_is_measured_alone(
    found, measure, max_tokens
):
    for chunk in chunk_document(found, measure=measure, max_tokens=max_tokens):
        assert 0 <= len(measure(chunk.text)) <= max_tokens


@settings(deadline=None, max_examples=150)
@given(documents, measures, sizes)
def test_ids_are_unique_and_the_same_on_every_run(found, measure, max_tokens):
    first = chunk_document(found, measure=measure, max_tokens=max_tokens)
    again = chunk_document(
        Document.from_dict(found.to_dict()), measure=measure, max_tokens=max_tokens
    )
    assert first == again
    assert len({chunk.id for chunk in first}) == len(first)


@settings(deadline=None, max_examples=150)
@given(documents, measures, sizes)
def test_a_chunk_ends_within_a_sentence_only_if_the_sentence_is_too_long(
    found, measure, max_tokens
):
    chunks = chunk_document(found, measure=measure, max_tokens=max_tokens)
    sentences = document_sentences(found)
    starts, stops = {start for start, _ in sentences}, {stop for _, stop in sentences}
    headings = {start for start, _ in sentences if any(s.start == start for s in found.sections)}
    for chunk in chunks:
        for place, edges in ((chunk.start, starts), (chunk.stop, stops)):
            if place in edges:
                continue
            i = next(i for i, (start, stop) in enumerate(sentences) if start < place < stop)
            first = i
            while first and sentences[first - 1][0] in headings:
                first -= 1
            whole = found.text[sentences[first][0] : sentences[i][1]]
            assert len(measure(whole)) > max_tokens or len(whole) > 32 * max_tokens


@settings(deadline=None, max_examples=150)
@given(documents, measures, sizes)
def test_no_chunk_holds_text_of_two_sections_but_the_bare_headings_above_it(
    found, measure, max_tokens
):
    for chunk in chunk_document(found, measure=measure, max_tokens=max_tokens):
        here = found.section_at(chunk.stop - 1)
        for start, stop in document_sentences(found, chunk.start, chunk.stop):
            section = found.section_at(start)
            if section != here:
                assert section.start <= start
                assert section.start < here.start < section.stop
                assert found.text[section.start : stop].strip("# =\r\n") == section.title.strip(
                    "# ="
                )


@settings(deadline=None, max_examples=150)
@given(documents, measures, sizes)
def test_a_chunk_shows_the_same_sentences_as_the_whole_document(found, measure, max_tokens):
    whole = document_sentences(found)
    for chunk in chunk_document(found, measure=measure, max_tokens=max_tokens):
        clipped = [
            (max(a, chunk.start), min(b, chunk.stop))
            for a, b in whole
            if a < chunk.stop and b > chunk.start
        ]
        expected = [found.text[a:b].strip() for a, b in clipped if found.text[a:b].strip()]
        spans = document_sentences(found, chunk.start, chunk.stop)
        assert [found.text[a:b] for a, b in spans] == expected


def test_chunks_are_filled_with_whole_sentences():
    assert texts_of("One two. Three four. Five six. Seven eight.", max_tokens=6) == [
        "One two. Three four.",
        "Five six. Seven eight.",
    ]


def test_a_small_rest_is_shared_with_the_chunk_before():
    text = " ".join(f"{word} b c d." for word in ("One", "Two", "Three", "Four", "Five"))
    assert [len(words(t)) for t in texts_of(text, max_tokens=20)] == [15, 10]


def test_a_chunk_that_is_half_full_rather_ends_with_the_paragraph():
    one, two = (
        "One two three four. Five six seven.",
        "Eight nine ten. Eleven twelve thirteen fourteen.",
    )
    assert texts_of(f"{one}\n\n{two}", max_tokens=14) == [one, two]
    assert texts_of(f"{one} {two}", max_tokens=14) != [one, two]


def test_short_paragraphs_share_a_chunk():
    assert texts_of("One.\n\nTwo.\n\nThree.\n", max_tokens=6) == ["One.\n\nTwo.\n\nThree."]


def test_a_long_sentence_is_cut_at_white_space_into_parts_of_one_size():
    sentence = " ".join(f"word{i}" for i in range(30)) + "."
    parts = texts_of(sentence, max_tokens=10)
    assert " ".join(parts) == sentence
    assert [len(words(part)) for part in parts] == [8, 8, 8, 7]


def test_a_long_word_is_cut_between_tokens():
    assert texts_of("abcdefghij", max_tokens=4, measure=letters) == ["abcd", "efg", "hij"]


def test_a_cut_parts_no_letter_from_its_accent():
    text = "e\u0301" * 10
    parts = texts_of(text, max_tokens=3, measure=letters)
    assert "".join(parts) == text
    assert all(part.startswith("e") for part in parts)


def test_a_family_of_one_sign_is_not_parted():
    family = "👩‍👩‍👧"
    for part in texts_of(family * 6, max_tokens=8, measure=letters):
        assert part.replace(family, "") == ""


def test_an_unknown_word_of_any_length_does_not_make_a_chunk_of_any_length():
    parts = texts_of("a" * 10_000, max_tokens=8, measure=blind)
    assert "".join(parts) == "a" * 10_000
    assert max(map(len, parts)) <= 8 * 32


def test_text_that_no_token_covers_is_still_in_a_chunk():
    assert texts_of("\u200b", max_tokens=4, measure=lambda text: np.empty((0, 2), int)) == [
        "\u200b"
    ]


def test_a_heading_stands_with_the_text_that_follows_it():
    text = "# A\n\nOne two three four five.\n\n## B\n\nSix seven eight nine ten.\n"
    assert texts_of(text, max_tokens=9, format="markdown") == [
        "# A\n\nOne two three four five.",
        "## B\n\nSix seven eight nine ten.",
    ]


def test_bare_headings_stand_with_the_first_text_below_them():
    text = "# A\n\n## B\n\nOne two.\n\n## C\n\n## D\n\nThree.\n"
    assert texts_of(text, max_tokens=50, format="markdown") == [
        "# A\n\n## B\n\nOne two.",
        "## C",
        "## D\n\nThree.",
    ]


def test_a_heading_is_not_left_alone_by_a_long_sentence():
    sentence = " ".join(f"word{i}" for i in range(10))
    first = texts_of(f"# Heading\n\n{sentence}.", max_tokens=12, format="markdown")[0]
    assert first.startswith("# Heading\n\nword0")


def test_a_heading_keeps_the_sentence_below_it_when_the_rest_is_shared():
    text = "# A\n\nOne two three four five six.\n\nSeven.\n"
    assert texts_of(text, max_tokens=9, format="markdown") == [
        "# A\n\nOne two three four five six.",
        "Seven.",
    ]


def test_lines_are_the_sentences_of_tables_and_code():
    text = "id,text\n1,One. Two.\n2,Three."
    assert [text[a:b] for a, b in document_sentences(document(text, "csv"))] == text.split("\n")
    assert [text[a:b] for a, b in document_sentences(document(text))] != text.split("\n")


def test_a_format_decides_whether_backticks_fence_code():
    text = "```\nOne\ntwo\n```"
    assert len(document_sentences(document(text, "markdown"))) == 2
    assert len(document_sentences(document(text, "text"))) == 1


def test_sentences_within_code_are_known_far_behind_its_opening():
    text = "```\n" + "x = 1\n\n" * 2_000 + "y = 2\nz = 3\n```\n"
    start = text.index("y = 2")
    found = document_sentences(document(text, "markdown"), start, start + 11)
    assert [text[a:b] for a, b in found] == ["y = 2", "z = 3"]


def test_sentences_are_clipped_to_the_span():
    text = "One two three. Four five."
    assert document_sentences(document(text), 4, 19) == [(4, 14), (15, 19)]


def test_what_stands_before_and_behind_a_span_decides_how_its_lines_are_read():
    text = "1. one\ngoes on\n2. two"
    assert [text[a:b] for a, b in document_sentences(document(text), 7, len(text))] == [
        "goes on",
        "2. two",
    ]
    row = "One two. Three | four"
    assert document_sentences(document(row), 0, 14) == [(0, 14)]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 99)])
def test_a_span_outside_the_text_is_refused(start, stop):
    with pytest.raises(ValueError, match=f"{start}:{stop}"):
        document_sentences(document("One."), start, stop)


def test_ids_stay_the_same_when_text_is_added_to_an_earlier_section():
    later = "## B\n\nOne two three. Four five six.\n\n## C\n\nSeven eight.\n"
    before = chunk_document(
        document(f"# A\n\nText.\n\n{later}", "markdown"), measure=words, max_tokens=9
    )
    after = chunk_document(
        document(f"# A\n\nText. More. Much more.\n\nAnd so on.\n\n{later}", "markdown"),
        measure=words,
        max_tokens=9,
    )
    assert [c.id for c in before[-3:]] == [c.id for c in after[-3:]]
    assert [c.start for c in before[-3:]] != [c.start for c in after[-3:]]


def test_ids_stay_the_same_behind_a_paragraph_added_to_plain_text():
    paragraphs = [" ".join(f"w{i}x{j}" for j in range(14)) + "." for i in range(6)]
    before = chunk_document(document("\n\n".join(paragraphs)), measure=words, max_tokens=16)
    after = chunk_document(
        document("\n\n".join(["New one.", *paragraphs])), measure=words, max_tokens=16
    )
    assert {c.id for c in before[1:]} <= {c.id for c in after}


def test_equal_texts_have_different_ids_that_follow_their_order():
    text = "# A\n\nSame.\n\n# A\n\nSame.\n"
    chunks = chunk_document(document(text, "markdown"), measure=words, max_tokens=9)
    assert [c.text for c in chunks] == ["# A\n\nSame."] * 2
    assert [c.id for c in chunks] == [chunk_id("a.md", "# A\n\nSame.", n) for n in (1, 2)]
    assert chunks[0].id != chunks[1].id


def test_an_id_is_sixteen_digits_that_depend_on_document_text_and_occurrence():
    ids = {
        chunk_id("a", "b", 1),
        chunk_id("a", "b", 2),
        chunk_id("a", "c", 1),
        chunk_id("b", "b", 1),
    }
    assert len(ids) == 4
    assert all(re.fullmatch("[0-9a-f]{16}", id) for id in ids)


def test_a_measure_that_counts_more_for_a_chunk_alone_only_makes_smaller_chunks():
    def with_overhead(text: str) -> np.ndarray:
        """Three tokens at the first character of whatever is measured."""
        return np.concatenate([[[0, 1]] * 3, words(text)])

    text = " ".join(f"Word{i} and more." for i in range(40))
    chunks = chunk_document(document(text), measure=with_overhead, max_tokens=12)
    assert max(len(with_overhead(c.text)) for c in chunks) <= 12
    assert len(chunks) > 10


def test_a_character_that_does_not_fit_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="max_tokens=3 is less than the 4 tokens of '😀'"):
        texts_of("😀", max_tokens=3, measure=utf8)


@pytest.mark.parametrize("offsets", [[[0, 9]], [0, 1], [[-1, 2]], [[0, 1, 2]]])
def test_a_measure_that_returns_no_offsets_is_refused(offsets):
    with pytest.raises(ValueError, match=r"no \[tokens, 2\]"):
        texts_of("One.", max_tokens=4, measure=lambda text: np.array(offsets))


def test_no_tokens_at_all_are_too_few():
    with pytest.raises(ValueError, match="max_tokens=0"):
        texts_of("One.", max_tokens=0)


def test_a_document_without_text_has_no_chunks():
    assert texts_of(" \n\n", max_tokens=4) == []


@pytest.mark.parametrize(("start", "stop", "text"), [(0, 3, "ab"), (-1, 1, "ab"), (2, 2, "")])
def test_a_chunk_must_be_a_span_of_its_text(start, stop, text):
    with pytest.raises(ValueError, match=f"{start}:{stop}"):
        Chunk("a", start, stop, text, "0")


def test_measure_sees_neighbourhoods_of_bounded_size():
    seen: list[int] = []

    def watched(text: str) -> np.ndarray:
        seen.append(len(text))
        return words(text)

    text = "One two three. " * 10_000
    chunks = chunk_document(document(text), measure=watched, max_tokens=64)
    assert max(seen) <= 20_000
    assert sum(seen) <= 2.1 * len(text)
    assert len(chunks) == pytest.approx(40_000 / 64, rel=0.1)


def test_a_boundary_within_the_last_section_is_kept_by_hand_made_sections():
    text = "One two. Three four. Five."
    found = document(text, sections=(Section("x", 1, 9, 20),))
    chunks = chunk_document(found, measure=words, max_tokens=50)
    assert [c.text for c in chunks] == ["One two.", "Three four.", "Five."]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_sentences_of_a_chunk_text_are_those_of_plain_prose(text):
    assume("```" not in text and "~~~" not in text)
    assert document_sentences(document(text)) == sentence_spans(text)
