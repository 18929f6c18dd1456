import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.corpus.sentences import sentence_spans, sentences_between, trimmed_span


def sentences(text: str, **more) -> list[str]:
    return [text[start:stop] for start, stop in sentence_spans(text, **more)]


# "|" stands where a sentence ends, in place of the space
TABLE = """
The pump failed.|It was old.
Really?!|Yes.|Well...|Nothing.|Wait…|Now.
He asked "Why?"|She said "No."|They left.
"Stop!" he said.|(It did.)|[So.]|Then it was over.
Dr. Ito met Mrs. Lee and Prof. de Vries.|They spoke.
See Fig. 3, Eq. 4 and Sec. 5, e.g. the valve, i.e. V-14, cf. Smith et al. (2020).|Then go on.
It costs $3.50 or 1,234.56 kr.|It is version 2.0.1.|Good.
Mr. J. R. R. Tolkien and A. Smith came.|G.W.F. Hegel did not.
He lives in the U.S. The pump does not.
He said no.|The valve held.
Pump No. 5 failed, see p. 12 and pp. 3 and 4.|Nobody saw it.
It weighs approx. 5 kg vs. 6 kg.|Fine.
He came at 5 p.m. and left.|It was late.
1. First do this.|Then do that.
a. First do this.|Then do that.
It failed.[12]|It was old.[3][4]|Next.
It failed. 5 pumps held.
**Bold.**|_Thin._|Next.
Visit www.example.com or mail a.b@example.com.|Thanks.
He stopped ... and went on.|Then it ended.
One more rep.|Then rest in the sun.|Done.
What? no
Yahoo! is old.
Am 3. Mai kam Dr. Müller.|Das war z.B. gut, bzw. besser.
Im 19. Jahrhundert gab es u.a. Pumpen.|Die Nr. 5 fiel aus.
Es kostete 5 Mio. Euro.|Das war viel.
Er kam am Ende des Jahres 1990.|Dann ging er.
M. Dupont est parti.|C'est vrai ?|Oui !
« Vraiment ? » dit-il.|Elle dit « Oui. »|Er kam.|»Ja«, sagte er.
¿Qué pasó?|¡Nada!|El niño comió.
Насос отказал.|Клапан закрылся.
هل تعطلت المضخة؟|نعم.
पंप खराब हो गया।|वाल्व देर से बंद हुआ।
"""
ENDS_ALSO_AT = {
    "He lives in the U.S. The pump does not.": ["He lives in the U.S.", "The pump does not."],
    "It failed. 5 pumps held.": ["It failed.", "5 pumps held."],
    "What? no": ["What?", "no"],
    "Yahoo! is old.": ["Yahoo!", "is old."],
}
LINES = TABLE.strip().splitlines()


@pytest.mark.parametrize("line", LINES)
def test_sentences_end_where_a_reader_would_end_them(line):
    assert sentences(line.replace("|", " ")) == ENDS_ALSO_AT.get(line, line.split("|"))


@pytest.mark.parametrize("line", [line for line in LINES if not re.match(r"\w\. ", line)])
def test_a_wrapped_line_changes_nothing(line):
    wrapped = line.replace("|", " ").replace(" ", " \r\n")
    expected = ENDS_ALSO_AT.get(line, line.split("|"))
    assert [" ".join(sentence.split()) for sentence in sentences(wrapped)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("泵坏了。阀门关得太晚！为什么？", ["泵坏了。", "阀门关得太晚！", "为什么？"]),
        ("価格は３．１４元。次。", ["価格は３．１４元。", "次。"]),
        ("「行く。」と言った。バルブが閉じた。", ["「行く。」と言った。", "バルブが閉じた。"]),
        ("他说「好。」然后走了。", ["他说「好。」", "然后走了。"]),
        ("終わり．次です．", ["終わり．", "次です．"]),
    ],
)
def test_scripts_without_spaces_end_sentences_at_their_marks(text, expected):
    assert sentences(text) == expected


def test_an_abbreviation_before_a_wrapped_line_does_not_end_a_sentence():
    assert sentences("It was shown in Fig.\n3 and by Dr.\nIto. Then\nit ended.") == [
        "It was shown in Fig.\n3 and by Dr.\nIto.",
        "Then\nit ended.",
    ]


def test_every_line_is_a_sentence_where_lines_count():
    text = 'id,text\r\n1,"One. Two."\r\n\r\n  }\n'
    assert sentences(text, by_line=True) == ["id,text", '1,"One. Two."', "}"]


def test_only_the_span_is_looked_at():
    text = "One two. Three four. Five six."
    assert list(sentences_between(text, 4, 26)) == [(4, 8), (9, 20), (21, 26 - 1)]


def test_a_span_is_trimmed_to_its_text():
    assert trimmed_span(" \u3000a b\r\n", 0, 7) == (2, 5)
    assert trimmed_span(" \n ", 0, 3) is None


PIECES = st.sampled_from(
    """word Word . .␣ !␣ … 。 ?␣ Dr.␣ 3.5 5.␣ ␣ ␣␣ ⏎ ⏎⏎ ␍⏎ ␍⏎␍⏎ -␣ #␣ |␣a␣|␣b␣|⏎ ```⏎ ===⏎ 😀 👩‍👩‍👧 e\u0301 日本
    \u200b Ben:␣ ( \" ' [1] 1)␣""".split()
).map(lambda piece: piece.replace("␣", " ").replace("⏎", "\n").replace("␍", "\r"))
texts = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=40).map("".join))


@settings(deadline=None, max_examples=200)
@given(texts, st.booleans())
def test_sentences_hold_every_character_but_space_in_order_without_overlap(text, by_line):
    spans = sentence_spans(text, by_line=by_line)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    outside = [text[a:b] for a, b in zip([0, *edges[1::2]], [*edges[::2], len(text)], strict=True)]
    assert "".join(outside).strip() == ""
    for start, stop in spans:
        assert text[start:stop] == text[start:stop].strip() != ""


@settings(deadline=None, max_examples=200)
@given(texts)
def test_a_sentence_never_crosses_a_blank_line(text):
    for sentence in sentences(text):
        assert not re.search(r"\n[^\S\n]*\n", sentence.replace("\r\n", "\n"))


@settings(deadline=None)
@given(texts, texts)
def test_what_stands_in_another_paragraph_changes_nothing(before, after):
    text = "One is here. Two\nis there."
    before = before.replace("`", "").replace("~", "") + "\n\n"
    spans = list(sentences_between(before + text + "\n\n" + after, 0, len(before) + len(text)))
    mine = [
        (start - len(before), stop - len(before)) for start, stop in spans if stop > len(before)
    ]
    assert mine == [(0, 12), (13, 26)]


RUNS = [
    "." * 1_000_000,
    "." * 1_000_000 + "x",
    "." + '"' * 1_000_000 + "x",
    ".)" * 500_000,
    ".[1" * 300_000,
    "a." + " " * 1_000_000 + "b",
    "# " + "#" * 1_000_000 + "x",
    "# " + " " * 1_000_000 + "#x",
    "> " * 500_000,
    "- " * 500_000 + "x",
    "_ " * 500_000,
    "a  |" * 250_000,
    "。」" * 500_000,
    "\n" * 1_000_000,
    "A. " * 300_000,
]
COUNT = "import sys; from workbench.corpus.sentences import sentence_spans as f; print(len(f(sys.stdin.read())))"


@pytest.mark.hostile
@pytest.mark.parametrize("text", RUNS, ids=lambda text: repr(text[:4]))
def test_a_million_marks_end_in_time(text):
    # time that grew with the square would be hours; the limit is there to end them
    command = [sys.executable, "-c", COUNT]
    done = subprocess.run(
        command, input=text.encode(), capture_output=True, timeout=300, check=True
    )
    assert int(done.stdout) >= (1 if text.strip() else 0)
