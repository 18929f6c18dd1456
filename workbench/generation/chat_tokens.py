"""Messages → the token ids of a chat in which no text is ever a control token. Knows roles and contents, no passages.

Control tokens may stand only where the chat template writes them; a *mark* ``[n]`` that the vocabulary holds as one
token, only where the prompt's builder wrote it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import CheckpointError

MARK = re.compile(r"\[\d+\]")
BRACKETED = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True, slots=True)
class _Control:
    """A control token or mark that is meant: half-open characters of the text, and its id."""

    start: int
    stop: int
    id: int


def chat_token_ids(
    tokenizer: Any,
    messages: Sequence[tuple[str, str]],
    *,
    own_marks: Sequence[Sequence[int]] | None = None,
) -> tuple[str, list[int], NDArray[np.int32], list[int]]:
    """Render `messages` (role, content) with the tokenizer's chat template for an answer to follow.

    Returns the text, the token ids, their character spans [tokens, 2] in the text, and the offset of each content; the
    text holds every content verbatim.

    The ids are those of ``apply_chat_template`` on every clean text. They differ where they must: text that spells a
    control token stays plain text; where a control token swallows the white space after it (``rstrip``, as in Phi-3.5),
    it swallows the template's and never a content's own; with `own_marks`, the offsets in each content at which the
    caller wrote a mark, every other ``[n]`` is plain text too. A template that trims contents does so no more.

    Raises ``ValueError`` for text that is no valid Unicode and ``CheckpointError`` for a template that leaves a message
    out or a tokenizer whose model makes control tokens of plain text.

    >>> from workbench.generation.loading import load_generator
    >>> tokenizer = load_generator("pocket").tokenizer
    >>> text, ids, _, _ = chat_token_ids(tokenizer, [("user", "Who?<|end|>")])
    >>> [token for token in tokenizer.convert_ids_to_tokens(ids) if token.startswith("<|")]
    ['<|user|>', '<|end|>', '<|assistant|>']
    """
    _check_unicode(messages)
    text, offsets, meant = _render(tokenizer, messages)
    watched = control_ids(tokenizer)
    if own_marks is not None:
        known = mark_ids(tokenizer)
        watched |= set(known.values())
        meant += _marks_at(own_marks, messages, offsets, known)
        meant.sort(key=lambda control: control.start)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = list(encoded["input_ids"]), _spans(encoded["offset_mapping"])
    if _seen(ids, spans, watched) != meant:
        ids, spans = _tokenize_around(tokenizer, text, meant, watched)
    return text, ids, spans, offsets


def control_ids(tokenizer: Any) -> set[int]:
    """Every added token that is special or written in angle brackets: chat format, begin and end of text, padding.

    Phi-3.5 lists ``</s>`` without marking it special, so that ``split_special_tokens`` lets it through.

    >>> from workbench.generation.loading import load_generator
    >>> len(control_ids(load_generator("pocket").tokenizer))
    8
    """
    added = tokenizer.added_tokens_decoder.items()
    return {i for i, token in added if token.special or BRACKETED.fullmatch(token.content)}


def mark_ids(tokenizer: Any) -> dict[str, int]:
    """The marks that are added tokens of their own, with their ids: none in Phi, 64 in the pocket model.

    >>> from workbench.generation.loading import load_generator
    >>> mark_ids(load_generator("pocket").tokenizer)["[1]"]
    8
    """
    added = tokenizer.added_tokens_decoder.items()
    return {token.content: i for i, token in added if MARK.fullmatch(token.content)}


def most_tokens(tokenizer: Any, text: str, *, own_marks: Collection[int] = ()) -> int:
    """An upper bound of the tokens that `text` takes in a content, its literal control tokens and marks spelled.

    `own_marks` are the offsets of marks that stay one token.

    >>> from workbench.generation.loading import load_generator
    >>> tokenizer = load_generator("pocket").tokenizer
    >>> most_tokens(tokenizer, "[1]", own_marks=[0]), most_tokens(tokenizer, "[1]")
    (1, 3)
    """
    added = tokenizer.added_tokens_decoder
    names = {added[i].content for i in control_ids(tokenizer)} | mark_ids(tokenizer).keys()
    literal = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    cuts = [m.start() + 1 for m in literal.finditer(text) if m.start() not in own_marks]
    parts = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    encoded = tokenizer(parts, add_special_tokens=False)
    return sum(map(len, encoded["input_ids"]))


def answer_ids(
    tokenizer: Any, text: str, *, own_marks: Sequence[int] | None = None, continues: bool = False
) -> list[int]:
    r"""The ids of `text` where the model speaks: as the beginning of its answer or, if it `continues`, later in it.

    They differ where a tokenizer puts a space before every run of text, as Phi-3.5's does. `own_marks` as in
    ``chat_token_ids``.

    >>> from workbench.generation.loading import load_generator
    >>> tokenizer = load_generator("pocket").tokenizer
    >>> tokenizer.convert_ids_to_tokens(answer_ids(tokenizer, "[1] see [2]", own_marks=[0]))
    ['[1]', ' see', ' ', '[', '2', ']']
    """
    lead = "x" if continues else ""
    places = None if own_marks is None else [(), [len(lead) + place for place in own_marks]]
    talk = (("user", "x"), ("assistant", lead + text))
    _, ids, spans, offsets = chat_token_ids(tokenizer, talk, own_marks=places)
    start = offsets[-1] + len(lead)
    rows = np.flatnonzero((spans[:, 0] >= start) & (spans[:, 0] < start + len(text)))
    if len(rows) and spans[rows[0], 0] > start:
        raise CheckpointError(
            f"this tokenizer joins {text[:20]!r} with what stands before it, so it cannot be told apart as an answer"
        )
    return [ids[row] for row in rows]


def _check_unicode(messages: Sequence[tuple[str, str]]) -> None:
    for number, (role, content) in enumerate(messages, start=1):
        try:
            content.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"message {number} ({role}) holds half a surrogate pair at character {error.start}; "
                "decode the text again with errors='replace'"
            ) from None


def _marks_at(
    own_marks: Sequence[Sequence[int]],
    messages: Sequence[tuple[str, str]],
    offsets: Sequence[int],
    known: dict[str, int],
) -> list[_Control]:
    found = []
    for offset, (_, content), places in zip(offsets, messages, own_marks, strict=True):
        for place in places:
            match = MARK.match(content, place)
            if match is None:
                raise ValueError(
                    f"no mark at character {place} of a message, but {content[place : place + 8]!r}"
                )
            if match.group() in known:
                found.append(_Control(offset + place, offset + match.end(), known[match.group()]))
    return found


def _render(
    tokenizer: Any, messages: Sequence[tuple[str, str]]
) -> tuple[str, list[int], list[_Control]]:
    """The text, the offset of each content, and the control tokens that the template itself wrote.

    The template is rendered around random stand-ins, so that it never sees what the contents say. An empty content
    stands for itself, because templates leave an empty system message out; its offset is where the one before it ends.
    """
    holes = [content and f"PLACEHOLDER{secrets.token_hex(12)}" for _, content in messages]
    chat = [
        {"role": role, "content": hole} for (role, _), hole in zip(messages, holes, strict=True)
    ]
    frame = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(frame, add_special_tokens=False, return_offsets_mapping=True)
    controls = _seen(
        encoded["input_ids"], _spans(encoded["offset_mapping"]), control_ids(tokenizer)
    )
    text, offsets, at = "", [], 0
    moves = [(0, 0)]  # from this character of the frame on, the text is so much further
    for hole, (role, content) in zip(holes, messages, strict=True):
        found = frame.find(hole, at)
        if found < 0:
            raise CheckpointError(
                f"the chat template dropped a message of role {role!r}; give a checkpoint with a Phi chat template"
            )
        text += frame[at:found]
        offsets.append(len(text))
        text += content
        at = found + len(hole)
        moves.append((at, len(text) - at))
    text += frame[at:]

    def move(control: _Control) -> _Control:
        shift = next(by for start, by in reversed(moves) if start <= control.start)
        return _Control(control.start + shift, control.stop + shift, control.id)

    return text, offsets, [move(control) for control in controls]


def _tokenize_around(
    tokenizer: Any, text: str, meant: Sequence[_Control], watched: set[int]
) -> tuple[list[int], NDArray[np.int32]]:
    """Tokenize `text` so that of the `watched` tokens it holds exactly the `meant` ones.

    A copy of the tokenizer knows none of them by its name; each that is meant gets a random name instead, and the text
    that name in its place. So everything else (normalizer, prefix space, where words begin) works as in the original.
    """
    from tokenizers import AddedToken, Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] not in watched]
    state["truncation"] = state["padding"] = state["post_processor"] = None
    plain = Tokenizer.from_str(json.dumps(state))
    real = {plain.token_to_id(t["content"]): int(t["id"]) for t in state["added_tokens"]}
    nonce = secrets.token_hex(12)
    names = {control.id: f"{nonce}x{control.id}x" for control in meant}
    added = tokenizer.added_tokens_decoder
    plain.add_tokens(
        [AddedToken(name, normalized=added[i].normalized) for i, name in names.items()]
    )
    real |= {plain.token_to_id(name): i for i, name in names.items()}

    renamed, at, places = "", 0, []  # places: where a name stands in `renamed`
    for control in meant:
        renamed += text[at : control.start]
        places.append(len(renamed))
        renamed += names[control.id]
        at = control.stop
    encoded = plain.encode(renamed + text[at:], add_special_tokens=False)
    ids = [real.get(i, i) for i in encoded.ids]

    # Characters of the text behind those of `renamed`: a name is as long as what it stands for, the rest moves along.
    known = [0, *(p for c, n in zip(meant, places, strict=True) for p in (n, n + len(names[c.id])))]
    truth = [0, *(p for control in meant for p in (control.start, control.stop))]
    raw = _spans(encoded.offsets)
    last = np.searchsorted(known, raw, side="right") - 1
    spans = np.asarray(np.asarray(truth)[last] + raw - np.asarray(known)[last], dtype=np.int32)
    if _seen(ids, spans, watched - {tokenizer.unk_token_id}) != [
        control for control in meant if control.id != tokenizer.unk_token_id
    ]:
        raise CheckpointError(
            "this tokenizer makes control tokens of plain text: its vocabulary holds their names; "
            "give a checkpoint with the tokenizer it was published with"
        )
    return ids, spans


def _seen(ids: Sequence[int], spans: NDArray[np.int32], watched: set[int]) -> list[_Control]:
    rows = np.flatnonzero(np.isin(np.asarray(ids, dtype=np.int64), list(watched)))
    return [_Control(int(spans[row, 0]), int(spans[row, 1]), ids[int(row)]) for row in rows]


def _spans(offsets: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    return np.asarray(offsets, dtype=np.int32).reshape(-1, 2)
