import io

import pytest
from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen.canvas import Canvas

from workbench.corpus.extracted import Extracted
from workbench.corpus.pdf_text import extract_pdf
from workbench.errors import InputError


def pdf(*pages: list[str], title: str = "", outline: list[tuple[str, int, int]] = ()) -> bytes:
    """A PDF with these lines on its pages; `outline` holds title, page from 0, and level from 0."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pageCompression=0)
    canvas.setTitle(title)
    for number, lines in enumerate(pages):
        for key, entry in enumerate(outline):
            if entry[1] == number:
                canvas.bookmarkPage(str(key))
        for i, line in enumerate(lines):
            canvas.drawString(72, 720 - 14 * i, line)
        canvas.showPage()
    for key, (entry, _, level) in enumerate(outline):
        canvas.addOutlineEntry(entry, str(key), level)
    canvas.save()
    return buffer.getvalue()


def protected(data: bytes, password: str, algorithm: str = "RC4-128") -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(password, "owner", algorithm=algorithm)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def page_texts(extracted: Extracted) -> list[str]:
    return [extracted.text[page.start : page.stop].strip() for page in extracted.pages]


def test_pages_are_spans_that_leave_no_gap():
    extracted = extract_pdf(pdf(["One.", "Two."], ["Three."], ["Four."]))
    assert page_texts(extracted) == ["One.\nTwo.", "Three.", "Four."]
    assert [page.number for page in extracted.pages] == [1, 2, 3]
    edges = [edge for page in extracted.pages for edge in (page.start, page.stop)]
    assert edges == [0, *(edge for edge in edges[1:-1]), len(extracted.text)]
    assert edges[1:-1:2] == edges[2:-1:2]


def test_a_sentence_that_runs_on_is_not_parted_by_a_blank_line():
    assert extract_pdf(pdf(["The pump"], ["failed."])).text == "The pump\nfailed."
    assert (
        extract_pdf(pdf(["The pump failed."], ["It was old."])).text
        == "The pump failed.\n\nIt was old."
    )
    assert extract_pdf(pdf(["Figure 1"], ["Pumps fail."])).text == "Figure 1\n\nPumps fail."


def test_an_empty_page_keeps_its_number_and_is_noticed():
    extracted = extract_pdf(pdf(["One."], [], ["Three."]))
    assert page_texts(extracted) == ["One.", "", "Three."]
    assert extracted.notices == ("1 of 3 pages hold no text; run OCR first if they are scans",)


def test_the_outline_gives_sections_at_the_lines_of_their_titles():
    pages = [
        ["Report", "Introduction", "It began.", "1.1 Scope", "Small."],
        ["2 Results", "It ended."],
    ]
    outline = [
        ("Introduction", 0, 0),
        ("Scope", 0, 1),
        ("Results", 1, 0),
        ("Not on the page", 1, 1),
    ]
    extracted = extract_pdf(pdf(*pages, outline=outline))
    found = [(s.title, s.level, extracted.text[s.start : s.stop]) for s in extracted.sections]
    assert found == [
        ("Introduction", 1, "Introduction\nIt began.\n1.1 Scope\nSmall.\n\n"),
        ("Scope", 2, "1.1 Scope\nSmall.\n\n"),
        ("Results", 1, "2 Results\nIt ended."),
    ]


def test_an_entry_that_is_not_found_begins_with_its_page():
    extracted = extract_pdf(pdf(["One."], ["Two."], outline=[("Elsewhere", 1, 0)]))
    assert [(s.title, s.start) for s in extracted.sections] == [
        ("Elsewhere", extracted.pages[1].start)
    ]


@pytest.mark.parametrize(
    ("stored", "title"),
    [
        ("The pump", "The pump"),
        ("", None),
        ("untitled", None),
        ("Microsoft Word - a", None),
        ("draft.docx", None),
    ],
)
def test_the_title_is_the_stored_one_unless_a_program_made_it_up(stored, title):
    assert extract_pdf(pdf(["One."], title=stored)).title == title


def test_a_scan_without_text_is_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"^no text layer; run OCR first$"):
        extract_pdf(pdf([], []))


def test_a_password_is_asked_for_by_name_of_the_fault():
    with pytest.raises(InputError, match=r"^protected by a password; save a copy without one$"):
        extract_pdf(protected(pdf(["Secret."]), "user"))


def test_an_empty_password_opens_a_protected_file():
    assert extract_pdf(protected(pdf(["Open."]), "")).text == "Open."


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"%PDF-1.4",
        b"%PDF-1.4\n%%EOF",
        b"no pdf at all" * 50,
        pdf(["One."])[:400],
        pdf(["One."])[-300:],
    ],
    ids=["nothing", "a header", "no objects", "another file", "the first part", "the last part"],
)
def test_a_broken_file_is_an_input_error_of_one_line(data):
    with pytest.raises(InputError, match=r"^(broken PDF \(|no text layer)") as raised:
        extract_pdf(data)
    assert "\n" not in str(raised.value)


def test_a_page_that_cannot_be_read_is_told_and_the_rest_goes_on():
    extracted = extract_pdf(pdf(["One."], ["Two."]).replace(b"(One.)", b"(One. "))
    assert page_texts(extracted) == ["", "Two."]
    (notice,) = extracted.notices
    assert notice.startswith("page 1 could not be read (")


def test_what_pypdf_says_of_a_damaged_file_is_not_shown_beside_the_notices(
    caplog: pytest.LogCaptureFixture,
):
    data = pdf(["One."])
    extract_pdf(b"x" * 20 + data)
    assert not caplog.records
