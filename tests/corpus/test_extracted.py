import pytest

from workbench.corpus.extracted import (
    TextWriter,
    fenced,
    in_one_space,
    table_row,
    without_surrogates,
)


def test_every_block_stands_where_the_writer_says():
    writer = TextWriter()
    starts = {text: writer.block(f"\n{text}  \n") for text in ("one", "  two", "日本😀")}
    assert writer.text == "one\n\n  two\n\n日本😀"
    assert len(writer) == len(writer.text)
    assert all(writer.text[start:].startswith(text) for text, start in starts.items())


def test_nothing_is_written_for_an_empty_block_or_heading():
    writer = TextWriter()
    writer.block(" \n")
    writer.heading("\t", 1)
    assert (writer.text, writer.headings) == ("", [])


def test_a_heading_is_written_in_one_line():
    writer = TextWriter()
    writer.block("before")
    writer.heading("One\n two", 2)
    (heading,) = writer.headings
    assert writer.text[heading.start :] == heading.title == "One two"


@pytest.mark.parametrize(
    ("cells", "row"),
    [(["a", "b\nc"], "| a | b c |"), (["", "x"], "|  | x |"), (["alone "], "alone"), ([], "")],
)
def test_a_row_is_one_line(cells, row):
    assert table_row(cells) == row


def test_a_fence_is_longer_than_those_within():
    assert fenced("a ```` b") == "`````\na ```` b\n`````"


def test_white_space_of_any_kind_becomes_one_space():
    assert in_one_space(" a\r\n\tb\u00a0\u3000c ") == "a b c"


@pytest.mark.parametrize(
    ("text", "clean"),
    [("\ud83d\ude00", "😀"), ("\ud83d.", "\ufffd."), ("a\0b", "ab"), ("é😀", "é😀")],
)
def test_surrogates_become_what_utf8_can_hold(text, clean):
    assert without_surrogates(text) == clean
    clean.encode()
