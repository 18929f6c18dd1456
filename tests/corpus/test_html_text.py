import pytest

from workbench.corpus.html_text import extract_html


def text_of(html: str) -> str:
    return extract_html(html.encode()).text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One\n  <b>bo</b>ld &amp; <i>it</i>alic.</p><p>Two", "One bold & italic.\n\nTwo"),
        ("<div>a<div>b</div>c</div>", "a\n\nb\n\nc"),
        ("One<br>two<br><br>three", "One\ntwo\n\nthree"),
        ("<ul><li>a<li>b <ul><li>c</ul><li><p>d</p><p>e</p></ul>f", "- a\n- b\n- c\n- d\n\ne\n\nf"),
        ("<ol><li>a</li><li>b<ol><li>c</ol></li><li>d</ol>", "1. a\n2. b\n1. c\n3. d"),
        ("<dl><dt>Pump<dd>It pumps.</dl>", "Pump\n\nIt pumps."),
        ("<pre>a\n  b &lt;c&gt;<br>d\n</pre>after", "```\na\n  b <c>\nd\n```\n\nafter"),
        ("x&nbsp;y", "x\u00a0y"),
        ("H<sub>2</sub>O", "H2O"),
        ("<!-- no --><![CDATA[no]]><?no?><!doctype html>yes", "yes"),
        ("http://example.com", "http://example.com"),
    ],
)
def test_a_page_reads_as_blocks(html, text):
    assert text_of(html) == text


def test_rows_of_a_table_are_lines():
    html = """<table><caption>Valves</caption><thead><tr><th>Name<th>H<sub>2</sub>O</thead>
    <tr><td><p>V-14</p><p>old</p></td><td>3&nbsp;bar</td></tr><tr><td><td></tr><tr><td>alone</table>after"""
    assert text_of(html) == "Valves\n\n| Name | H2O |\n| V-14 old | 3 bar |\n\nalone\n\nafter"


def test_a_table_that_lays_out_a_page_is_no_table():
    html = "<table><tr><td><h2>Pump</h2><p>It failed.</td><td><table><tr><td>a<td>b</table></table>"
    assert text_of(html) == "Pump\n\nIt failed.\n\n| a | b |"


@pytest.mark.parametrize(
    "left_out",
    [
        "<script>secret()</script>",
        "<style>secret{}</style>",
        "<nav><p>secret</nav>",
        "<template>secret</template>",
        "<noscript>secret</noscript>",
        "<p hidden>secret</p>",
        "<head><meta name=x content=secret></head>",
        "<svg><text>secret</text></svg>",
        "<select><option>secret</select>",
        "<table><tr><td>x<td><script>secret()</script>y</table>",
    ],
)
def test_what_no_reader_sees_is_left_out(left_out):
    text = text_of(f"<p>before</p>{left_out}<p>after</p>")
    assert "secret" not in text
    assert text.startswith("before")
    assert text.endswith("after")


def test_headings_are_sections_and_the_title_is_the_pages():
    extracted = extract_html(
        b"<title> The\n page </title>x<h1>A <i>b</i></h1><p>one<h3>C</h3>two<h2>D</h2>three<h1></h1>"
    )
    found = [(s.title, s.level, extracted.text[s.start : s.stop]) for s in extracted.sections]
    assert extracted.title == "The page"
    assert found == [
        ("A b", 1, "A b\n\none\n\nC\n\ntwo\n\nD\n\nthree"),
        ("C", 3, "C\n\ntwo\n\n"),
        ("D", 2, "D\n\nthree"),
    ]


@pytest.mark.parametrize("html", ["<p>x", "<title></title><p>x"])
def test_a_page_without_a_title_has_none(html):
    assert extract_html(html.encode()).title is None


def test_the_declared_encoding_counts():
    page = '<meta charset="windows-1251"><p>Насос'.encode("cp1251")
    extracted = extract_html(page)
    assert (extracted.text, extracted.encoding) == ("Насос", "cp1251")
    assert extracted.notices == ("not UTF-8; read as cp1251",)


def test_a_page_nested_a_hundred_thousand_deep_is_read():
    assert text_of("<div>" * 100_000 + "deep") == "deep"
