import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.corpus.sections import (
    Heading,
    closes_fence,
    markdown_headings,
    opened_fence,
    sections_from,
)

BLOCKS = [
    "# A",
    "## B ##",
    "### C # d",
    "###### F",
    "#",
    "## ",
    "# A#",
    "####### seven",
    "#nope",
    "\\# no",
    "One\n===",
    "Two words\n---",
    "*em* `x`\n-",
    "word",
    "two\nlines\n===",
    "```\n# code\n```",
    "~~~~ x\n# code\n~~~\n~~~~",
    "- item\n---",
    "- item\n\n---",
    "1. one\n===",
    "> quote\n---",
    "***",
    "***\nOne\n===",
    "    # indented\n    ===",
    "<!--\n# gone\n-->",
    "",
]


def headings(text: str) -> list[tuple[str, int, int]]:
    return [(h.title, h.level, h.start) for h in markdown_headings(text)]


def commonmark(text: str) -> list[tuple[str, int, int]]:
    """The same by markdown-it, but for headings of several lines and those within lists and quotations."""
    MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt
    lines = text.splitlines(keepends=True)
    tokens = MarkdownIt("commonmark").parse(text)
    return [
        (tokens[i + 1].content, int(token.tag[1]), sum(map(len, lines[: token.map[0]])))
        for i, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0
        if token.markup[0] == "#" or token.map[1] - token.map[0] == 2
    ]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(BLOCKS), max_size=8))
def test_headings_agree_with_a_commonmark_parser(blocks):
    text = "\n\n".join(blocks) + "\n"
    assert headings(text) == commonmark(text)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_headings_are_found_with_every_line_end(end):
    text = end.join(["# A", "text", "", "B", "---", "more", ""])
    assert headings(text) == [("A", 1, 0), ("B", 2, text.index("B"))]


def test_front_matter_is_no_heading():
    assert headings("---\ntitle: Pump\n---\n# A\n") == [("A", 1, 20)]


def test_a_rule_at_the_start_is_no_front_matter():
    assert headings("---\n# A\n\n---\n") == [("A", 1, 4)]


def test_front_matter_without_an_end_hides_nothing():
    assert headings("---\ntitle: x\n# A\n") == [("A", 1, 13)]


def test_code_that_is_never_closed_runs_to_the_end():
    assert headings("# A\n```\n# B\n") == [("A", 1, 0)]


def test_an_offset_is_added_to_every_start():
    assert [h.start for h in markdown_headings("# A\n\nB\n===\n", offset=100)] == [100, 105]


def test_a_row_above_the_rule_of_a_table_is_no_heading():
    assert headings("| a | b |\n|---|---|\n| 1 | 2 |\n---\n") == []


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ("```", "```"),
        ("````py", "````"),
        ("~~~ x ~ y", "~~~"),
        ("   ```", "```"),
        ("    ```", ""),
        ("``", ""),
        ("``` a`b", ""),
    ],
)
def test_what_opens_fenced_code(line, mark):
    assert opened_fence(line) == mark


@pytest.mark.parametrize(
    ("line", "closes"),
    [
        ("```", True),
        ("`````", True),
        ("  ``` ", True),
        ("``", False),
        ("~~~", False),
        ("``` x", False),
        ("    ```", False),
    ],
)
def test_what_closes_fenced_code(line, closes):
    assert closes_fence(line, "```") is closes


levels = st.lists(st.integers(1, 6), max_size=12)


@given(levels)
def test_a_section_runs_to_the_next_heading_of_its_level_or_a_higher_one(levels):
    found = sections_from(
        [Heading(str(i), level, 10 * i) for i, level in enumerate(levels)], 10 * len(levels)
    )
    for i, section in enumerate(found):
        later = [10 * j for j in range(i + 1, len(levels)) if levels[j] <= levels[i]]
        assert (section.start, section.stop) == (10 * i, min(later, default=10 * len(levels)))


@given(levels)
def test_sections_nest_or_follow_each_other(levels):
    found = sections_from(
        [Heading(str(i), level, 10 * i) for i, level in enumerate(levels)], 10 * len(levels)
    )
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert other.stop <= one.stop or other.start >= one.stop
