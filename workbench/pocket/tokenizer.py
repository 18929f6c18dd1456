"""Build the pocket tokenizer: byte-fallback BPE over generated text, with Phi's control tokens and the marks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from workbench.generation.prompts import FREE_SYSTEM, QUOTE_SYSTEM, SUMMARY_SYSTEM
from workbench.pocket.data import MAX_UNITS, example
from workbench.pocket.prose import documents

CONTROL = (
    "<unk>",
    "<s>",
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<pad>",
)
PAD = CONTROL.index("<pad>")
END = CONTROL.index("<|end|>")
ENDOFTEXT = CONTROL.index("<|endoftext|>")
MARKS = tuple(f"[{n}]" for n in range(1, MAX_UNITS + 1))
FIRST_MARK = len(CONTROL)
# The layout of Phi-3.5: every message closed by <|end|> and a line end.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# A word, a digit or a sign, each with the one space before it; line ends and runs of spaces stand alone.
_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\n| +|\s"


def train_tokenizer(*, vocabulary: int = 4096, examples: int = 6000, seed: int = 1) -> Any:
    """Train on the training split of the generated data and on the Python reference.

    Marks are added tokens but not special: they decode. Bytes are ordinary tokens, so every Unicode text round-trips.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=CONTROL[0], fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    letters = [chr(c) for c in range(32, 127)] + list(
        "\näöüßÄÖÜéèêëàâçîïôûùœÉÀÈñáíóúü¿¡ìò–—“”„«»’§°€›"
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*CONTROL, *MARKS, *byte_tokens],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        max_token_length=14,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(examples, seed), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        {**token, "special": token["content"] in CONTROL}
        for token in state["added_tokens"]
        if token["content"] not in byte_tokens
    ]
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    return fast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=131072,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _texts(examples: int, seed: int) -> Iterator[str]:
    yield from (QUOTE_SYSTEM, FREE_SYSTEM, SUMMARY_SYSTEM)
    for document in documents(held_out=False):
        yield from document
    for index in range(examples):
        made = example(seed=f"tokenizer-{seed}-{index}", units=8)
        if made.family not in ("copy", "code", "summary"):
            yield from made.units
            yield from (turn.line for turn in made.turns)
