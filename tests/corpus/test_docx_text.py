import io
import zipfile

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from workbench.corpus import docx_text
from workbench.corpus.docx_text import extract_docx
from workbench.corpus.extracted import Extracted
from workbench.errors import InputError


def bytes_of(document) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def extracted(document) -> Extracted:
    return extract_docx(bytes_of(document))


def element(xml: str):
    return parse_xml(xml.replace(">", f" {nsdecls('w')}>", 1))


def with_part(data: bytes, name: str, change) -> bytes:
    """The archive with the part `name` as `change` made it; left out where that is None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.namelist():
            part = change(old.read(entry)) if entry == name else old.read(entry)
            if part is not None:
                new.writestr(entry, part)
    return buffer.getvalue()


def test_paragraphs_lists_and_tables_stand_in_their_order():
    document = docx.Document()
    document.add_paragraph("Before.")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ["Name", "Pressure", "V-14\nold", "3 bar"], strict=True):
        cell.text = text
    document.add_paragraph("one", style="List Bullet")
    document.add_paragraph("two", style="List Number 2")
    document.add_paragraph("")
    document.add_paragraph("After.\tThe end.")
    assert extracted(document).text == (
        "Before.\n\n| Name | Pressure |\n| V-14 old | 3 bar |\n\n- one\n- two\n\nAfter.\tThe end."
    )


def test_two_tables_are_kept_apart():
    document = docx.Document()
    for text in "ab":
        table = document.add_table(rows=1, cols=2)
        table.cell(0, 0).text = text
    assert extracted(document).text == "| a |  |\n\n| b |  |"


def test_tables_within_cells_and_merged_cells_lose_nothing_and_double_nothing():
    document = docx.Document()
    table = document.add_table(rows=2, cols=3)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    table.cell(0, 2).merge(table.cell(1, 2)).text = "tall"
    table.cell(1, 0).add_table(rows=1, cols=1).cell(0, 0).text = "inner"
    text = extracted(document).text
    assert [text.count(word) for word in ("wide", "tall", "inner")] == [1, 1, 1]


def test_heading_styles_and_those_based_on_them_are_sections():
    document = docx.Document()
    document.add_heading("One", 1)
    document.add_paragraph("text")
    own = document.styles.add_style("Own", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
    own.base_style = document.styles["Heading 2"]
    document.add_paragraph("Two", style="Own")
    document.add_heading("Three", 1)
    found = extracted(document)
    assert [(s.title, s.level, found.text[s.start : s.stop]) for s in found.sections] == [
        ("One", 1, "One\n\ntext\n\nTwo\n\n"),
        ("Two", 2, "Two\n\n"),
        ("Three", 1, "Three"),
    ]


def test_the_title_is_the_documents_own_then_that_of_its_title_paragraph():
    document = docx.Document()
    document.add_paragraph("Shown  title", style="Title")
    assert extracted(document).title == "Shown title"
    document.core_properties.title = "Stored title"
    assert extracted(document).title == "Stored title"
    assert extracted(docx.Document()).title is None


def test_tracked_insertions_links_and_content_controls_are_read_and_deletions_are_not():
    document = docx.Document()
    paragraph = document.add_paragraph("kept ")
    paragraph._p.append(element("<w:ins><w:r><w:t>inserted </w:t></w:r></w:ins>"))
    paragraph._p.append(element("<w:del><w:r><w:delText>deleted </w:delText></w:r></w:del>"))
    paragraph._p.append(element("<w:hyperlink><w:r><w:t>linked</w:t></w:r></w:hyperlink>"))
    control = (
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>controlled</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    )
    document.element.body.insert(1, element(control))
    assert extracted(document).text == "kept inserted linked\n\ncontrolled"


def test_what_is_not_read_is_told():
    document = docx.Document()
    run = document.add_paragraph("text").add_run()
    run._r.append(
        element('<w:footnoteReference w:id="2"/>'.replace("/>", "></w:footnoteReference>"))
    )
    assert extracted(document).notices == ("not read: 1 footnotes",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"plain text", "not a zip archive"),
        (b"PK\x03\x04" + bytes(50), "not a zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50), "protected by a password"),
    ],
)
def test_what_is_no_docx_is_an_input_error(data, reason):
    with pytest.raises(InputError, match=reason):
        extract_docx(data)


@pytest.mark.parametrize(
    "part", ["word/document.xml", "[Content_Types].xml", "_rels/.rels", "word/styles.xml"]
)
@pytest.mark.parametrize(
    "change", [lambda data: None, lambda data: data[: len(data) // 2], lambda data: b""]
)
def test_a_missing_or_cut_part_is_an_input_error_of_one_line(part, change):
    document = docx.Document()
    document.add_heading("One", 1)
    with pytest.raises(InputError, match=r"^broken DOCX \(") as raised:
        extract_docx(with_part(bytes_of(document), part, change))
    assert "\n" not in str(raised.value)


def test_another_office_document_is_no_word_document():
    data = with_part(
        bytes_of(docx.Document()),
        "[Content_Types].xml",
        lambda data: data.replace(b"wordprocessingml.document.main", b"spreadsheetml.sheet.main"),
    )
    with pytest.raises(InputError, match="broken DOCX"):
        extract_docx(data)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(docx_text, "MAX_UNPACKED_BYTES", 1_000_000)
    data = with_part(
        bytes_of(docx.Document()), "word/document.xml", lambda data: data + b" " * 2_000_000
    )
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(InputError, match=r"^refused: it unpacks to [23] MB"):
        extract_docx(data)


def test_entities_that_grow_are_not_expanded():
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    document = docx.Document()
    document.add_paragraph("TEXT")

    def change(data: bytes) -> bytes:
        head, _, rest = data.partition(b"?>")
        return head + b"?>" + bomb + rest.replace(b"TEXT", b"&b;")

    try:
        text = extract_docx(with_part(bytes_of(document), "word/document.xml", change)).text
    except InputError:
        text = ""
    assert "aaaa" not in text
