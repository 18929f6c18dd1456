import pytest

from workbench.corpus.languages import language_of


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The pump failed because its seal was worn, and nobody had looked at it for years."),
        (
            "de",
            "Die Pumpe fiel aus, weil ihre Dichtung verschlissen war und niemand danach gesehen hatte.",
        ),
        ("fr", "La pompe est tombée en panne parce que son joint était usé depuis des années."),
        ("es", "La bomba falló porque su junta estaba gastada y nadie la había revisado en años."),
        ("zh", "水泵因密封件磨损而失效，多年来没有人检查过它。"),
        ("ja", "ポンプはシールが摩耗していたために故障した。"),
        ("ru", "Насос отказал, потому что его уплотнение износилось, и никто за ним не следил."),
    ],
)
def test_a_sentence_tells_its_language(code, text):
    assert language_of(text) == code


@pytest.mark.parametrize("text", ["", "12 34 56 . , ;", "Hello", "\n\n"])
def test_what_says_too_little_has_no_language(text):
    assert language_of(text) is None


def test_the_middle_counts_too():
    table = "1 2 3 4 5 6 7 8 9 0 " * 150
    assert (
        language_of(table + "Die Pumpe fiel aus, weil ihre Dichtung verschlissen war. " * 60)
        == "de"
    )
