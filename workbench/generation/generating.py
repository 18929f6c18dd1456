"""Prompts → generations by transformers' ``generate`` over a cache that was read before: one row, or a bucket of rows.

Knows how to run and what to record; what a generation says about itself is put together by the generator.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from workbench.generation.batches import join_rows
from workbench.generation.decoding import Draw, OnText, TextStreamer, Watch, pad_id, stop_ids
from workbench.generation.kv_cache import cached_tokens
from workbench.generation.options import Request
from workbench.generation.prompts import Prompt
from workbench.generation.results import FinishReason, Generation
from workbench.generation.sequences import TokenSequence
from workbench.routing.capture import Choices

if TYPE_CHECKING:
    import torch

    from workbench.generation.phi import Generator


def generate_one(
    generator: Generator, prompt: Prompt, request: Request, *, on_text: OnText | None
) -> Generation:
    """The generation of one prompt; see ``Generator.generate``."""
    ids = list(prompt.token_ids)
    answer: list[int] = []
    with generator.sequence(ids, request) as sequence:
        watch = _watch(generator, request, rows=1, slots=len(ids))
        is_read = request.decoding.cache == "none" or sequence.prefill(
            ids[:-1], cancel=request.cancel
        )
        if is_read:
            import torch

            streamer = TextStreamer(generator.tokenizer, on_text, request.stop) if on_text else None
            output = _run(
                generator,
                request,
                watch,
                input_ids=torch.tensor([ids], device=generator.model.device),
                attention_mask=None,
                cache=sequence.cache,
                streamer=streamer,
            )
            answer = _until_end(generator, output[0, len(ids) :].tolist(), watch, 0)
            sequence.token_ids = [*ids, *answer]
        choices = _finished(sequence.choices([*ids, *answer]), answer)
        timing = watch.timing()
        computed = min(len(ids) - sequence.reused_tokens, sequence.computed_tokens)
    return generator.result(
        prompt,
        answer,
        logs=watch.log_probabilities(answer),
        choices=choices,
        finish=_finish(generator, answer, watch, request, 0),
        timing=timing,
        computed=computed if request.decoding.cache != "none" else len(ids),
        reused=sequence.reused_tokens,
        stop=request.stop,
    )


def generate_rows(
    generator: Generator, prompts: Sequence[Prompt], request: Request
) -> list[Generation]:
    """The generations of one bucket, its longest prompt first; see ``Generator.generate_batch``."""
    ids = [list(prompt.token_ids) for prompt in prompts]
    slots = len(ids[0])
    if len(prompts) == 1 or slots == 1:
        return [generate_one(generator, prompt, request, on_text=None) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in ids]
    choices: list[Choices | None] = [None for _ in ids]
    reused = [0 for _ in ids]
    base_request = Request(0, decoding=request.decoding, capture=request.capture)
    with generator.sequence(ids[0], base_request) as base:
        watch = _watch(generator, request, rows=len(ids), slots=slots)
        generator.prefixes.make_room(
            generator.cache_bytes(len(ids) * (slots + request.max_new_tokens), request.decoding)
        )
        joined = None
        if base.prefill(ids[0][:-1], cancel=request.cancel):
            with _paused(base):
                joined = join_rows(
                    generator.model,
                    ids,
                    base=base,
                    new_tokens=request.max_new_tokens,
                    pad=pad_id(generator.model, generator.tokenizer),
                    cancel=request.cancel,
                )
        if joined is None and base.recorder is not None:  # cancelled: nothing is known to be routed
            choices = [base.recorder.another().choices(row) for row in ids]
        if joined is not None:
            recorder = base.recorder and base.recorder.another()
            with _paused(base), recorder or contextlib.nullcontext():
                output = _run(
                    generator,
                    request,
                    watch,
                    input_ids=joined.input_ids,
                    attention_mask=joined.attention_mask,
                    cache=joined.cache,
                    streamer=None,
                )
            reused = list(joined.reused_tokens)
            for row, tokens in enumerate(output[:, slots:].tolist()):
                answers[row] = _until_end(generator, tokens, watch, row)
            if recorder is not None:
                for row in range(len(ids)):
                    found = recorder.choices(
                        [*ids[row], *answers[row]],
                        row=row,
                        positions=joined.positions(row, output.shape[1]),
                        before=joined.choices[row],
                    )
                    choices[row] = _finished(found, answers[row])
        timing = watch.timing()
    return [
        generator.result(
            prompt,
            answers[row],
            logs=watch.log_probabilities(answers[row], row=row),
            choices=choices[row],
            finish=_finish(generator, answers[row], watch, request, row),
            timing=timing,
            computed=len(ids[row]) - reused[row] if joined is not None else 0,
            reused=reused[row],
            stop=request.stop,
        )
        for row, prompt in enumerate(prompts)
    ]


def _watch(generator: Generator, request: Request, *, rows: int, slots: int) -> Watch:
    return Watch(
        generator.tokenizer,
        rows=rows,
        prompt_slots=slots,
        cancel=request.cancel,
        stop=request.stop,
        lookup=request.decoding.prompt_lookup_tokens,
    )


def _run(
    generator: Generator,
    request: Request,
    watch: Watch,
    *,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Any,
    streamer: TextStreamer | None,
) -> torch.Tensor:
    """Call ``generate`` over `cache`, which holds all but the last token of every row."""
    import torch
    from transformers import GenerationConfig

    sampling, lookup = request.sampling, request.decoding.prompt_lookup_tokens
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=request.max_new_tokens,
        eos_token_id=stop_ids(generator.model, generator.tokenizer),
        pad_token_id=pad_id(generator.model, generator.tokenizer),
        do_sample=False,  # sampling is the likeliest of randomly shifted scores: see Draw
        use_cache=cache is not None,
        disable_compile=True,  # a compiled graph reuses the tensors that the recorder keeps
        prompt_lookup_num_tokens=lookup or None,
    )
    draws = [] if sampling.temperature == 0 else [Draw(sampling, generator.model.device)]
    with _feeding_rest(generator, cached_tokens(cache) if lookup else 0):
        output: torch.Tensor = generator.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            generation_config=config,
            past_key_values=cache,
            logits_processor=[watch.see_scores, *draws],
            stopping_criteria=[watch.stop],
            streamer=streamer,
        )
    return output


@contextlib.contextmanager
def _feeding_rest(generator: Generator, fed: int) -> Iterator[None]:
    """Let the first pass of prompt lookup leave out the `fed` tokens that the cache holds.

    transformers 5.23 does so in every mode of ``generate`` but this one, where it would feed them twice.
    """
    if not fed:
        yield
        return
    model = generator.model
    prepare = model.prepare_inputs_for_generation

    @functools.wraps(prepare)  # generate reads the signature to tell which options a model knows
    def prepare_rest(input_ids: torch.Tensor, **options: Any) -> Any:
        if options.get("is_first_iteration") and options.get("next_sequence_length") is None:
            options["next_sequence_length"] = input_ids.shape[1] - fed
        return prepare(input_ids, **options)

    own = model.__dict__.get("prepare_inputs_for_generation")
    model.prepare_inputs_for_generation = prepare_rest
    try:
        yield
    finally:
        del model.prepare_inputs_for_generation
        if own is not None:
            model.prepare_inputs_for_generation = own


def _until_end(generator: Generator, tokens: Sequence[int], watch: Watch, row: int) -> list[int]:
    """The answer without the padding of a row that ended before others: up to a stop token or a stop string."""
    ends = set(stop_ids(generator.model, generator.tokenizer))
    until = watch.stopped_after(row)
    for count, token in enumerate(tokens, start=1):
        if token in ends or count == until:
            return list(tokens[:count])
    return list(tokens)


def _finished(choices: Choices | None, answer: Sequence[int]) -> Choices | None:
    """The last token counts as not routed, also where it was fed: in a row that waits for others, or as a guess."""
    if choices is not None and answer:
        choices.forget_last()
    return choices


def _finish(
    generator: Generator, answer: Sequence[int], watch: Watch, request: Request, row: int
) -> FinishReason:
    ended = bool(answer) and answer[-1] in stop_ids(generator.model, generator.tokenizer)
    if ended or watch.stopped_after(row) is not None:
        return "stop"
    return "length" if len(answer) >= request.max_new_tokens else "cancelled"


def _paused(sequence: TokenSequence) -> contextlib.AbstractContextManager[None]:
    return sequence.recorder.paused() if sequence.recorder else contextlib.nullcontext()
