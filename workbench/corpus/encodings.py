"""Bytes → text, and the encoding that was found. Certain where a mark or UTF-8 says so; a guess is always told."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from workbench.errors import InputError

# UTF-32 first: its little-endian mark begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What people still have on their disks; rarer code pages win by accident on short texts.
_LEGACY = (
    "cp1252 cp1250 cp1251 koi8_r cp1253 cp1254 cp1255 cp1256 cp932 euc_jp gb18030 big5 cp949 mac_roman cp850"
).split()
# What a file may declare; Python knows codecs that are no encodings of text, such as "hex"
_CODE_PAGE = re.compile(
    r"cp\d+|iso8859-\d+|koi8[-_][ru]|gb\w+|big5\w*|euc_\w+|shift_jis\w*|mac[-_]\w+"
)
_SAMPLE_BYTES = 65_536
_NEVER_SECOND = re.compile(rb"[\x00-\x2f]")  # in none of them the second byte of a character
_ASCII_LETTER = re.compile(rb"[A-Za-z]")
_HIGH_BYTE = re.compile(rb"[\x80-\xff]")
# No text holds many of these; the escape of coloured logs and the backspace of old manual pages are not among them.
_CONTROL = re.compile(r"[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]")


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text, the Python name of its encoding, and a sentence about it when it was guessed or damaged."""

    text: str
    encoding: str
    notice: str | None = None


def decode_text(data: bytes, *, declared: str | None = None) -> Decoded:
    """Text of `data`, without its byte-order mark, line ends untouched.

    A byte-order mark decides, then valid UTF-8, then the encoding that the file itself declares, then a guess.

    >>> decode_text("café".encode("utf-8"))
    Decoded(text='café', encoding='utf-8', notice=None)
    >>> decode_text("Die Prüfung größerer Ventile".encode("cp1252")).notice
    'not UTF-8; read as cp1252'

    Raises
    ------
    InputError
        The bytes are no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode(data, encoding)
    if 0 in data[:_SAMPLE_BYTES]:
        return _decode_wide(data)
    utf8 = _decode(data, "utf-8")
    if utf8.notice is None or _is_mostly_utf8(utf8.text):
        return _text_only(utf8)
    for encoding in filter(None, (_known(declared), _guess(data))):
        decoded = _decode(data, encoding)
        if decoded.text[:_SAMPLE_BYTES].count("\ufffd") <= 0.02 * len(data[:_SAMPLE_BYTES]):
            notice = f"not UTF-8; read as {encoding}"
            notice += f"; {decoded.notice}" if decoded.notice else ""
            return _text_only(Decoded(decoded.text, encoding, notice))
    raise InputError("binary data")


def _decode(data: bytes, encoding: str) -> Decoded:
    try:
        return Decoded(data.decode(encoding), encoding)
    except UnicodeDecodeError:
        text = data.decode(encoding, errors="replace")
        return Decoded(text, encoding, _damage(encoding, text))


def _damage(encoding: str, text: str) -> str:
    count = text.count("\ufffd")
    return f"damaged {encoding}; {count} unreadable byte sequence{'' if count == 1 else 's'} became U+FFFD"


def _decode_wide(data: bytes) -> Decoded:
    """UTF-16 without a mark: every other byte of Latin text is zero. Anything else with zeros is no text."""
    sample = data[:_SAMPLE_BYTES]
    even, odd = (sample[i::2].count(0) / max(1, len(sample[i::2])) for i in (0, 1))
    if min(even, odd) < 0.05 and max(even, odd) > 0.5:
        encoding = "utf-16-le" if odd > even else "utf-16-be"
        decoded = _decode(data, encoding)
        if decoded.notice is None:
            return _text_only(
                Decoded(decoded.text, encoding, f"no byte-order mark; read as {encoding}")
            )
    raise InputError("binary data")


def _is_mostly_utf8(mended: str) -> bool:
    """Whether what is not ASCII is UTF-8 for the greater part, as chance hardly ever makes it."""
    lost = mended.count("\ufffd")
    kept = len(mended) - len(mended.encode("ascii", errors="ignore")) - lost
    return kept > 2 * lost


def _guess(data: bytes) -> str:
    """The likeliest legacy encoding; cp1252 where nothing speaks for another."""
    from charset_normalizer import from_bytes

    sample = _sample_around_high_byte(data)
    matches = from_bytes(sample, cp_isolation=_LEGACY, enable_fallback=False)
    best = matches.best()
    is_latin = len(_HIGH_BYTE.findall(sample)) < len(_ASCII_LETTER.findall(sample))
    if best is None or (is_latin and best.coherence == 0):
        return "cp1252"
    for match in matches:
        as_good = match.chaos <= best.chaos and match.coherence >= best.coherence
        if as_good and "cp1252" in match.could_be_from_charset:
            return "cp1252"
    return best.encoding


def _sample_around_high_byte(data: bytes) -> bytes:
    """A part of `data` from before its first byte outside ASCII, that cuts no character in two."""
    first = _HIGH_BYTE.search(data)
    start = max(0, first.start() - 1_000) if first else 0
    stop = start + _SAMPLE_BYTES
    if stop >= len(data):
        return data[start:]
    whole = max((match.end() for match in _NEVER_SECOND.finditer(data, start, stop)), default=start)
    # far behind the last space, only text of two bytes a character goes on for so long
    return data[start : whole if whole > start + _SAMPLE_BYTES // 2 else stop - (stop - whole) % 2]


def _known(declared: str | None) -> str | None:
    try:
        name = codecs.lookup(declared).name if declared else None
    except LookupError:
        return None
    if name in ("ascii", "iso8859-1"):
        return "cp1252"  # as browsers take these names: https://encoding.spec.whatwg.org/#names-and-labels
    return name if name and _CODE_PAGE.fullmatch(name) else None


def _text_only(decoded: Decoded) -> Decoded:
    sample = decoded.text[:_SAMPLE_BYTES]
    if len(_CONTROL.findall(sample)) > 0.02 * len(sample):
        raise InputError("binary data")
    return decoded
