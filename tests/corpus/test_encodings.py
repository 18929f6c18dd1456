import codecs
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.corpus.encodings import decode_text
from workbench.errors import InputError

GERMAN = "Die Prüfung der Ventile ergab größere Schäden, als man zunächst glaubte. "
LEGACY = {
    "cp1252": GERMAN,
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy. Čerpadlo bylo poškozeno při převozu do dílny. ",
    "cp1251": "Насос был повреждён при перевозке. Клапан закрылся слишком поздно. ",
    "koi8_r": "Насос был повреждён при перевозке. Клапан закрылся слишком поздно. ",
    "cp1253": "Η αντλία υπέστη ζημιά κατά τη μεταφορά. Η βαλβίδα έκλεισε αργά. ",
    "cp1254": "Pompa taşıma sırasında hasar gördü. Vana çok geç kapandı, şimdi değişecek. ",
    "cp932": "ポンプは輸送中に破損した。バルブが遅れて閉じた。",
    "gb18030": "泵在运输过程中损坏。阀门关闭得太晚。",
    "cp949": "펌프가 운송 중에 손상되었습니다. 밸브가 너무 늦게 닫혔습니다. ",
}
text_without_nul = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@settings(deadline=None)
@given(text_without_nul)
def test_utf8_comes_back_exactly_with_and_without_its_mark(text):
    text = text.lstrip("\ufeff")
    plain = decode_text(text.encode())
    marked = decode_text(codecs.BOM_UTF8 + text.encode())
    assert (plain.text, plain.encoding, plain.notice) == (text, "utf-8", None)
    assert (marked.text, marked.encoding, marked.notice) == (text, "utf-8-sig", None)


@pytest.mark.parametrize(
    ("mark", "codec", "name"),
    [
        (codecs.BOM_UTF16_LE, "utf-16-le", "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16-be", "utf-16"),
        (codecs.BOM_UTF32_LE, "utf-32-le", "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32-be", "utf-32"),
    ],
)
def test_a_byte_order_mark_decides_and_is_dropped(mark, codec, name):
    text = "Übergröße 😀\r\n日本"
    decoded = decode_text(mark + text.encode(codec))
    assert (decoded.text, decoded.encoding, decoded.notice) == (text, name, None)


def test_line_ends_are_not_touched():
    assert decode_text(b"a\r\nb\rc\nd").text == "a\r\nb\rc\nd"


@pytest.mark.parametrize("encoding", LEGACY)
def test_a_paragraph_in_a_legacy_encoding_is_recognised_and_told(encoding):
    text = LEGACY[encoding] * 3
    decoded = decode_text(text.encode(encoding))
    assert decoded.text == text
    assert decoded.encoding == encoding
    assert decoded.notice == f"not UTF-8; read as {encoding}"


@pytest.mark.parametrize("text", ["café naïve", "It’s “fine” – 20 °C", "größer", GERMAN])
def test_western_text_however_short_is_read_as_cp1252(text):
    decoded = decode_text(text.encode("cp1252"))
    assert (decoded.text, decoded.notice) == (text, "not UTF-8; read as cp1252")


def test_the_first_accent_may_come_late_in_a_long_file():
    text = "plain words\n" * 20_000 + LEGACY["cp1251"] * 3
    assert decode_text(text.encode("cp1251")).text == text


def test_a_sample_that_cuts_a_character_still_finds_the_encoding():
    text = "阀门\n" + LEGACY["gb18030"] * 3_000
    assert decode_text(text.encode("gb18030")).text == text


def test_a_few_broken_bytes_do_not_turn_utf8_into_mojibake():
    decoded = decode_text(GERMAN.encode() + b"\xff" + GERMAN.encode() + b"\xe9")
    assert decoded.text == GERMAN + "\ufffd" + GERMAN + "\ufffd"
    assert decoded.encoding == "utf-8"
    assert decoded.notice == "damaged utf-8; 2 unreadable byte sequences became U+FFFD"


def test_half_a_character_behind_a_utf16_mark_is_told():
    decoded = decode_text(codecs.BOM_UTF16_LE + "ab".encode("utf-16-le") + b"c")
    assert decoded.text == "ab\ufffd"
    assert decoded.notice == "damaged utf-16; 1 unreadable byte sequence became U+FFFD"


def test_a_byte_that_cp1252_does_not_know_is_told():
    decoded = decode_text(GERMAN.encode("cp1252") * 3 + b"\x81")
    assert decoded.encoding == "cp1252"
    assert "1 unreadable byte sequence" in decoded.notice


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_recognised_and_told(codec):
    decoded = decode_text(GERMAN.encode(codec))
    assert (decoded.text, decoded.encoding) == (GERMAN, codec)
    assert decoded.notice == f"no byte-order mark; read as {codec}"


def test_a_declared_code_page_is_believed_where_utf8_does_not_hold():
    data = "Σ".encode("cp1253")
    assert decode_text(data, declared="windows-1253").text == "Σ"
    assert decode_text("Σ".encode(), declared="windows-1253").text == "Σ"


def test_declared_latin_1_means_cp1252_as_in_browsers():
    assert decode_text("“x”".encode("cp1252"), declared="iso-8859-1").text == "“x”"


@pytest.mark.parametrize(
    "declared", ["hex", "zlib", "idna", "undefined", "unicode_escape", "rot13", "no such"]
)
def test_a_declared_codec_that_is_no_code_page_is_ignored(declared):
    assert decode_text("größer".encode("cp1252"), declared=declared).text == "größer"


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_random_bytes_are_no_text(size):
    choose = random.Random(size)
    for _ in range(3):
        data = choose.randbytes(size)
        with pytest.raises(InputError, match="binary data"):
            decode_text(data)
        with pytest.raises(InputError, match="binary data"):
            decode_text(data.replace(b"\0", b"\1"))


def test_control_characters_are_no_text_but_coloured_logs_are():
    with pytest.raises(InputError, match="binary data"):
        decode_text(b"\x01\x02\x03 abc")
    assert decode_text(b"\x1b[31mred\x1b[0m").text == "\x1b[31mred\x1b[0m"


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_give_text_that_utf8_can_hold_or_one_reason(data):
    try:
        decoded = decode_text(data)
    except InputError as error:
        assert str(error) == "binary data"
    else:
        decoded.text.encode()
