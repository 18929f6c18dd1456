"""Ten questions on one long document: prefix reuse against the model card's own pipeline, interleaved in one process.

The card's sample code (microsoft/Phi-3.5-MoE-instruct) is run as it stands there, but for the checkpoint's place, the
device, and float32 on a CPU, so that both sides compute in the same precision.

Run: python benchmarks/long_document.py [--generator FOLDER] [--tokens 8192] [--questions 10]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from tables import heading, table

import workbench as wb
from workbench.checkpoints.finding import find_checkpoint
from workbench.generation.options import Decoding
from workbench.generation.prompts import chat_token_ids, plain_prompt

NEW_TOKENS = 16
QUESTIONS = (
    "Which valve failed first?", "Who saw the smoke?", "When was the pump stopped?", "What did the repair cost?",
    "Which pin sheared?", "Where is the spare part kept?", "How long did the outage last?", "Who signed the report?",
    "What was replaced on Monday?", "Why did the alarm stay silent?",
)  # fmt: skip


def card_pipeline(source: str, device: str, dtype: Any) -> Any:
    """What the model card tells its reader to write."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained(
        source, device_map=device, dtype=dtype, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    generation_args = {
        "max_new_tokens": NEW_TOKENS,
        "return_full_text": False,
        "temperature": 0.0,
        "do_sample": False,
    }
    return lambda text: pipe([{"role": "user", "content": text}], **generation_args)[0][
        "generated_text"
    ]


def long_text(tokenizer: Any, tokens: int) -> str:
    """The corpus's documents one after another, as often as needed, cut to about `tokens` tokens."""
    corpus = wb.read_corpus(Path(__file__).resolve().parent.parent / "corpora")
    text = "\n\n".join(document.text for document in corpus)
    while True:
        ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if len(ids["input_ids"]) >= tokens:
            return text[: ids["offset_mapping"][tokens - 1][1]]
        text += "\n\n" + text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    arguments = parser.parse_args()
    context = arguments.tokens + 512
    ours = wb.load_generator(arguments.generator, context=context)
    theirs = card_pipeline(
        find_checkpoint(arguments.generator).source, ours.device, ours.model.dtype
    )
    document = long_text(ours.tokenizer, arguments.tokens)
    texts = [f"{document}\n\nQuestion: {q}" for q in QUESTIONS[: arguments.questions]]
    prompts = [plain_prompt(t, tokenizer=ours.tokenizer, budget_tokens=context) for t in texts]
    # the pipeline's own tokens must be ours, or the two would not do the same work
    assert tuple(chat_token_ids(ours.tokenizer, [("user", texts[0])])[1]) == prompts[0].token_ids
    theirs("warm up")
    ours.generate(
        plain_prompt("warm up", tokenizer=ours.tokenizer, budget_tokens=99), max_new_tokens=4
    )

    seconds: dict[str, list[float]] = {"card": [], "reused": [], "fresh": []}
    first: dict[str, list[float]] = {"reused": [], "fresh": []}
    texts_equal, tokens_equal, reused_tokens = 0, 0, []
    for text, prompt in zip(texts, prompts, strict=True):
        started = time.perf_counter()
        said = theirs(text)
        seconds["card"].append(time.perf_counter() - started)
        found = {}
        for name in ("reused", "fresh"):
            started = time.perf_counter()
            found[name] = ours.generate(
                prompt,
                max_new_tokens=NEW_TOKENS,
                decoding=Decoding(reuse_prefix=name == "reused"),
            )
            seconds[name].append(time.perf_counter() - started)
            first[name].append(found[name].timing.prefill_seconds)
        texts_equal += said == found["fresh"].text
        tokens_equal += found["reused"].token_ids == found["fresh"].token_ids
        reused_tokens.append(found["reused"].cache.reused_tokens)

    total = {name: sum(values) for name, values in seconds.items()}
    count = len(texts)
    note = (
        f"{count} questions on one document of {arguments.tokens:,} tokens, up to {NEW_TOKENS} new tokens each, "
        f"greedy, {ours.model.dtype}, on {ours.device}; experts recorded on our side. Each question goes to all three "
        "in turn."
    )
    print(
        heading(
            f"Ten questions on one long document ({ours.name})",
            packages=("torch", "transformers"),
            seed=None,
            note=note,
        )
    )
    print()
    rows = [
        ["model card's pipeline", f"{total['card']:.1f}", "1.0", "–"],
        ["workbench, every prompt read whole", f"{total['fresh']:.1f}", f"{total['card'] / total['fresh']:.1f}",
         f"{statistics.median(first['fresh']):.2f}"],
        ["workbench, prefix reused", f"{total['reused']:.1f}", f"{total['card'] / total['reused']:.1f}",
         f"{statistics.median(first['reused'][1:]):.3f} (the first: {first['reused'][0]:.2f})"],
    ]  # fmt: skip
    print(
        table(
            [
                "way",
                "seconds in all",
                "times the pipeline's speed",
                "seconds to first token, median",
            ],
            rows,
        )
    )
    print()
    print(
        f"Tokens reused: {reused_tokens[0]:,} for the first, then {statistics.median(reused_tokens[1:]):,.0f} of "
        f"{len(prompts[0].token_ids):,}. With and without reuse {tokens_equal} of {count} answers have equal tokens; "
        f"the pipeline says the same text in {texts_equal} of {count}: beyond the original window stock transformers "
        "applies the short factors to Phimoe."
    )


if __name__ == "__main__":
    main()
