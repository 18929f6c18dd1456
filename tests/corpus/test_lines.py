import pytest

from workbench.corpus.lines import fence_at, nonblank_lines, units_between


def units(text: str, **more) -> list[str]:
    return [text[unit.start : unit.stop] for unit in units_between(text, 0, len(text), **more)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\u2028"])
def test_a_wrapped_paragraph_is_one_unit_and_a_blank_line_ends_it(end):
    one, two = f"one{end}two", "three"
    assert units(f"{one}{end} \t{end}{two}{end}") == [one, two]


@pytest.mark.parametrize(
    "lines",
    [
        ["- one", "* two", "+ three", "• four"],
        ["1. one", "2. two", "10. three"],
        ["(a) one", "(iv) two", "(12) three"],
        ["a) one", "b) two"],
        ["| a | b |", "| c | d |"],
        ["a | b", "c | d"],
        ["# One", "text", "## Two"],
        ["ANNA: yes", "BEN LEE: no", "DR. KIM (chair): well"],
        ["Anna: yes", "Ben: no", "Prof. Lee: well"],
        ["**Anna:** yes", "**Ben**: no"],
        ["[00:12] yes", "12:30:01.5 no"],
        ["Mesure :", "张三：你好", "李四：好"],
        ["3.1 The pump", "3.2 The valve"],
    ],
    ids=lambda lines: lines[0],
)
def test_lines_that_open_something_are_units_of_their_own(lines):
    assert units("\n".join(lines)) == lines


def test_a_list_item_and_a_turn_go_on_in_the_next_line():
    text = "- one\n  goes on\n- two\n\nANNA: I say\nmore\nBEN: no"
    assert units(text) == ["- one\n  goes on", "- two", "ANNA: I say\nmore", "BEN: no"]


@pytest.mark.parametrize(
    "wrapped",
    [
        "as was said on page\n12. The pump",
        "which appeared in\nNature: a journal",
        "between versions\n2.1 and later",
        "the case of\na) nothing",
        "it is written\nthus: so",
    ],
)
def test_wrapped_prose_that_looks_like_an_opening_is_not_cut(wrapped):
    assert units(wrapped) == [wrapped]


def test_marks_belong_to_the_line_beside_them():
    assert units("Title\n=====\ntext\n") == ["Title\n=====", "text"]
    assert units("| a | b |\n|---|---|\n| c | d |") == ["| a | b |\n|---|---|", "| c | d |"]
    assert units("---\ntitle: x\n---\n") == ["---\ntitle: x\n---"]
    assert units("> one\n>\n> two\n> three") == ["> one\n>", "> two\n> three"]
    assert units("one\n\n* * *\n\ntwo") == ["one", "* * *", "two"]


def test_lines_of_fenced_code_are_units_and_its_marks_belong_to_the_first_and_last():
    text = "Say:\n```python\nx = 1.  # One. Two.\n# no heading\n\n}\n```\nAfter\nthat."
    assert units(text) == [
        "Say:",
        "```python\nx = 1.  # One. Two.",
        "# no heading",
        "}\n```",
        "After\nthat.",
    ]


def test_fences_may_be_ordinary_text():
    assert units("```\none\ntwo\n```", fences=False) == ["```\none\ntwo\n```"]


def test_reading_may_begin_within_code():
    assert units("a\nb\n```\nc\nd", fence="```") == ["a", "b\n```", "c\nd"]


def test_an_empty_block_of_code_swallows_nothing():
    assert units("```\n```\ntext") == ["```\n```", "text"]


def test_the_mark_of_code_is_known_at_every_place():
    text = "a\n~~~\nb\n```\nc\n~~~\nd\n````\ne\n```\nf"
    marks = {"a": "", "b": "~~~", "c": "~~~", "d": "", "e": "````", "f": "````"}
    assert {line: fence_at(text, 0, text.index(line)) for line in marks} == marks


def test_blank_lines_are_left_out_and_space_is_cut_off():
    text = "a,b\r\n\r\n  c \u3000\n\u00a0\nd"
    assert [text[start:stop] for start, stop in nonblank_lines(text, 0, len(text))] == [
        "a,b",
        "c",
        "d",
    ]


def test_only_the_span_is_looked_at():
    text = "one\ntwo\n\nthree\nfour"
    assert [text[u.start : u.stop] for u in units_between(text, 4, 14)] == ["two", "three"]
