"""Compare an answer in words with references: exact match, containment, token F1; and a baseline that guesses by type.

Knows texts alone: no model, no documents.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SIGNS = str.maketrans("", "", string.punctuation + "“”‘’«»–—…")
_MONTHS = (
    "january february march april may june july august september october november december "
    "januar februar märz mai juni juli oktober dezember"
).replace(" ", "|")
_NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half"
).replace(" ", "|")
_DATE = (
    rf"(?:\d{{1,2}}\.? )?(?:{_MONTHS})(?: \d{{1,2}}\b,?)?(?: \d{{4}})?"
    r"|\b\d{4}-\d\d-\d\d\b|\b1\d{3}\b|\b20\d\d\b"
)
_NUMBER = (
    r"[€$£]?\d[\d.,:]*(?: ?(?:%|[a-zµ°]+))?"
    rf"|\b(?:{_NUMBER_WORDS})(?:[- ](?:{_NUMBER_WORDS}))*\b(?: \w+)?"
)
_NAME = r"[A-ZÄÖÜÉ][\w'’-]+(?: (?:of|de|von|van|the|der) (?=[A-Z]))?(?: [A-ZÄÖÜÉ][\w'’.-]+)*"


def normalised(text: str) -> str:
    """Lower case without punctuation, English articles and extra spaces, as the evaluation script of SQuAD 1.1 does.

    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (arXiv:1606.05250).

    >>> normalised("The  pump, it's “V-14”.")
    'pump its v14'
    """
    plain = _ARTICLES.sub(" ", text.lower().translate(_SIGNS))
    return " ".join(plain.split())


def is_exact(answer: str, references: Iterable[str]) -> bool:
    """Whether `answer` equals one of the references once both are normalised.

    >>> is_exact("the V-14.", ["V-14", "valve 14"])
    True
    """
    return normalised(answer) in {normalised(reference) for reference in references}


def is_contained(answer: str, references: Iterable[str]) -> bool:
    """Whether one of the references stands in `answer`, word by word, once both are normalised.

    >>> is_contained("It was valve V-14 that failed.", ["V-14"]), is_contained("V-140", ["V-14"])
    (True, False)
    """
    whole = f" {normalised(answer)} "
    plain = filter(None, map(normalised, references))
    return any(f" {reference} " in whole for reference in plain)


def token_f1(answer: str, references: Iterable[str]) -> float:
    """Harmonic mean of the shares of words that answer and reference have in common, 0 to 1, with the best reference.

    Words are counted as often as they occur (SQuAD 1.1, as above).

    >>> token_f1("about 12 red pumps", ["12 pumps"])
    0.6666666666666666
    """
    return max((_f1(normalised(answer), normalised(r)) for r in references), default=0.0)


def typed_span(question: str, sentence: str) -> str:
    """A guess without a model: the first number, date or name of `sentence` that the question's first words ask for.

    Words that the question itself holds are no answer; without any such span the whole sentence is given back.

    >>> typed_span("When did Ada found it?", "Ada founded the mill in 1843 with 12 friends.")
    '1843'
    >>> typed_span("Who founded the mill?", "The mill was founded by Ada Brown.")
    'Ada Brown'
    """
    asked = question.lower()
    known = set(normalised(question).split())
    if re.search(
        r"\b(when|what (?:year|date|day|month)|which (?:year|date|day)|wann|in welchem jahr)\b",
        asked,
    ):
        kinds = [_DATE, _NUMBER]
    elif re.search(
        r"\b(how (?:many|much|long|far|old|high|tall|deep|heavy|often|fast|large|big)|wie (?:viel|lang|hoch))",
        asked,
    ):
        kinds = [_NUMBER]
    elif re.search(r"\b(who|whom|whose|where|which|wer|wo|wen)\b", asked):
        kinds = [_NAME]
    else:
        kinds = [_NAME, _NUMBER]
    dates = [match.span() for match in re.finditer(_DATE, sentence, re.IGNORECASE)]
    for kind in kinds:
        for match in re.finditer(kind, sentence, 0 if kind is _NAME else re.IGNORECASE):
            if kind is _NUMBER and any(a <= match.start() < b for a, b in dates):
                continue  # a day of a month or a year is no amount
            words = match[0].rstrip(" .,;:").split()
            if kind is _NUMBER and len(words) > 1 and normalised(words[-1]) in known:
                words.pop()  # "how many guests": the unit is in the question
            is_opening = kind is _NAME and match.start() == 0 and len(words) == 1
            if words and not is_opening and not set(normalised(" ".join(words)).split()) & known:
                return " ".join(words)
    return sentence


def _f1(answer: str, reference: str) -> float:
    said, wanted = answer.split(), reference.split()
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return float(said == wanted)
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
