"""Word document → text: paragraphs, lists and tables in their order, heading styles as sections."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from workbench.corpus.extracted import Extracted, TextWriter, in_one_space, table_row
from workbench.corpus.metadata import told_metadata
from workbench.corpus.sections import sections_from
from workbench.errors import InputError

if TYPE_CHECKING:
    from docx.document import Document as WordDocument
    from docx.text.paragraph import Paragraph

MAX_UNPACKED_BYTES = 500_000_000
# What zipfile, lxml and python-docx let through on damaged files; lxml's own error is a SyntaxError
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, SyntaxError, LookupError,
    ValueError, AttributeError, TypeError,
)  # fmt: skip
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # container of old .doc files, and of new ones with a password
_HEADING = re.compile(r"heading ([1-9])\Z", re.IGNORECASE)
# Unlike iter_inner_content and paragraph.text these hold content controls and tracked insertions.
_BLOCKS = ".//*[self::w:p or self::w:tbl][not(ancestor::w:tbl or ancestor::w:txbxContent)]"
_RUNS = "w:r | w:hyperlink | w:ins/w:r | w:moveTo/w:r | w:smartTag//w:r | w:sdt/w:sdtContent//w:r | w:fldSimple//w:r"
_NOT_READ = {
    ".//w:txbxContent[not(ancestor::*[local-name()='Fallback'])]": "text boxes",
    ".//w:footnoteReference": "footnotes",
    ".//w:endnoteReference": "endnotes",
}


def extract_docx(data: bytes) -> Extracted:
    """Text of a Word document in blocks: paragraphs, ``- `` list items, ``| a | b |`` table rows.

    Raises
    ------
    InputError
        The file is no Word document, broken, protected by a password, or unpacks to more than 500 MB.
    """
    from docx import Document
    from docx.opc.exceptions import OpcError

    _refuse_bad_archive(data)
    writer = TextWriter()
    try:
        document = Document(io.BytesIO(data))
        title_paragraph = _write_blocks(document, writer)
        title = in_one_space(document.core_properties.title) or title_paragraph
        facts = document.core_properties
        metadata = told_metadata(
            author=facts.author, keywords=facts.keywords, created=facts.created
        )
        counts = {name: len(document.element.body.xpath(path)) for path, name in _NOT_READ.items()}
    except (OpcError, *_DAMAGE) as error:
        first_line = str(error).partition("\n")[0][:100]
        raise InputError(f"broken DOCX ({type(error).__name__}: {first_line})") from error
    left_out = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return Extracted(
        writer.text,
        title=title or None,
        sections=sections_from(writer.headings, len(writer)),
        notices=(f"not read: {left_out}",) if left_out else (),
        metadata=metadata,
    )


def _refuse_bad_archive(data: bytes) -> None:
    if data.startswith(_OLE):
        raise InputError(
            "an old .doc file or protected by a password; save it as .docx without one"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    except _DAMAGE as error:
        raise InputError("broken DOCX (not a zip archive)") from error
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise InputError(
            f"refused: it unpacks to {unpacked_bytes / 1e6:,.0f} MB, an honest DOCX to no more than "
            f"{MAX_UNPACKED_BYTES / 1e6:,.0f} MB"
        )


def _write_blocks(document: WordDocument, writer: TextWriter) -> str:
    """Write the body; return the text of the first paragraph in the style Title."""
    from docx.text.paragraph import Paragraph

    title, last = "", ""
    for element in document.element.body.xpath(_BLOCKS):
        if element.tag.endswith("}tbl"):
            for row in element.tr_lst:
                cells = [" ".join(map(_text, tc.xpath(".//w:p"))) for tc in row.tc_lst]
                if any(cell.strip() for cell in cells):
                    writer.block(table_row(cells), separator="\n" if last == "row" else "\n\n")
                    last = "row"
            last = ""
            continue
        text = _text(element)
        names = _style_names(Paragraph(element, document))
        level = next((int(match.group(1)) for match in map(_HEADING.match, names) if match), 0)
        is_item = not level and _is_list_item(element, names)
        if "Title" in names:
            title = title or in_one_space(text)
        if level:
            writer.heading(text, level)
        elif text.strip():
            writer.block(
                "- " * is_item + text, separator="\n" if is_item and last == "item" else "\n\n"
            )
        last = "item" if is_item else ""
    return title


def _text(paragraph: Any) -> str:
    return "".join(run.text for run in paragraph.xpath(_RUNS))


def _style_names(paragraph: Paragraph) -> list[str]:
    """The names of the paragraph's style and of those it is based on."""
    style: Any = paragraph.style
    names: list[str] = []
    while style is not None and len(names) < 10:
        names.append(style.name or "")
        style = style.base_style
    return names


def _is_list_item(paragraph: Any, style_names: list[str]) -> bool:
    has_number = paragraph.pPr is not None and paragraph.pPr.numPr is not None
    return has_number or any(name.startswith("List ") for name in style_names)
