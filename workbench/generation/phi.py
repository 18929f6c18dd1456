"""A loaded Phi answers: prompt → generation, with routing recorded and the rotary regime pinned.

Ordinary decoding is transformers' ``generate``; the quote style steps the model itself over a cache. One row at a time.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken
from workbench.errors import PromptTooLong
from workbench.generation.decoding import (
    OnText,
    Stepper,
    TextStreamer,
    Watch,
    decode_answer,
    pad_id,
    stop_ids,
)
from workbench.generation.longrope import Regime, check_regime, pin_regime, regime_for
from workbench.generation.prompts import ABSTENTION, Prompt, known_marks
from workbench.generation.quoting import decode_quotes
from workbench.generation.results import CacheReport, Candidate, FinishReason, Generation, Timing
from workbench.routing.capture import RoutingRecorder, TokenTable
from workbench.routing.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class Sampling:
    """How ordinary decoding chooses: greedy at temperature 0, else by `seed`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature={self.temperature} must be ≥ 0 and top_p={self.top_p} in (0, 1]"
            )


GREEDY = Sampling()


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """A loaded model that answers prompts of up to ``context`` tokens, the answer included.

    ``model`` and ``tokenizer`` are the transformers objects. ``regime`` is LongRoPE's, decided by ``context``.
    """

    name: str
    model: Any
    tokenizer: Any
    context: int
    regime: Regime
    reason: str = ""

    def __repr__(self) -> str:
        kind = "MoE" if self.is_moe else "dense"
        return (
            f"Generator({self.name!r}, {kind}, context {self.context:,} tokens, {self.regime} regime, "
            f"{self.device}; next: wb.ask(question, retriever=…, generator=…))"
        )

    @property
    def device(self) -> str:
        """Where the first layer lies."""
        return str(self.model.device)

    @property
    def is_moe(self) -> bool:
        """Whether the model has routers to look at."""
        return bool(self.model.config.model_type == "phimoe")

    @property
    def max_marks(self) -> int | None:
        """The highest mark this checkpoint knows; None for any."""
        return known_marks(self.tokenizer)

    def with_context(self, context: int) -> Generator:
        """The same weights for another context; the regime follows from it.

        Parameters are shared, only the module objects are new: both generators stay usable side by side.
        """
        regime = regime_for(self.model.config, context)
        shared = {
            id(tensor): tensor for tensor in [*self.model.parameters(), *self.model.buffers()]
        }
        model = copy.deepcopy(self.model, shared)
        pin_regime(model, regime)
        check_regime(model, regime)
        return replace(self, model=model, context=context, regime=regime)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        on_text: OnText | None = None,
        cancel: CancelToken | None = None,
        capture: bool = True,
    ) -> Generation:
        """Answer `prompt` by ordinary decoding; ``on_text`` receives the text as it grows.

        Cancelling keeps what there is, with ``finish_reason`` "cancelled". Raises ``PromptTooLong`` when prompt and
        answer exceed the context; nothing is ever cut silently.
        """
        self._check_room(prompt, max_new_tokens)
        import torch

        ids = torch.tensor([prompt.token_ids], device=self.model.device)
        watch = Watch(cancel)
        options = self._generation_options(sampling, max_new_tokens)
        recorder = self._recorder(capture)
        chance = torch.random.fork_rng(
            enabled=sampling.temperature > 0
        )  # leaves the caller's seed alone
        with chance, torch.inference_mode(), recorder or contextlib.nullcontext():
            if sampling.temperature > 0:
                torch.manual_seed(sampling.seed)
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=[watch.see_scores],
                stopping_criteria=[watch.stop],
                streamer=TextStreamer(self.tokenizer, on_text) if on_text else None,
                **options,
            )
        answer = output[0, len(prompt.token_ids) :].tolist()
        text, _ = decode_answer(self.tokenizer, answer)
        logs = watch.log_probabilities(answer)
        return self._result(
            prompt, text, answer, logs, recorder, self._finish(answer, watch), watch.timing()
        )

    def quote(
        self,
        prompt: Prompt,
        *,
        max_sentences: int = 1,
        may_abstain: bool = True,
        on_text: OnText | None = None,
        cancel: CancelToken | None = None,
        capture: bool = True,
    ) -> Generation:
        """Answer with verbatim sources and their marks, ``[n] text``, or with the abstention sentence.

        The choice is the model's own log-probability over all admissible answers (``Generation.candidates``). After a
        sentence the model may end its turn or, up to `max_sentences`, quote another.
        """
        if max_sentences < 1:
            raise ValueError(f"max_sentences={max_sentences} must be at least 1")
        import torch

        if not may_abstain and not prompt.sources:
            raise ValueError("there is no source to quote, and abstaining is not allowed")
        texts: dict[int | None, str] = {None: ABSTENTION} if may_abstain else {}
        answers: dict[int | None, list[int]] = {
            key: self._content_ids(text) for key, text in texts.items()
        }
        for source in prompt.sources:
            texts[source.n] = f"[{source.n}] {source.text}"
            answers[source.n] = self._content_ids(texts[source.n])
        end, separator = stop_ids(self.model, self.tokenizer)[0], self._content_ids("\n")
        longest = sorted((len(ids) for ids in answers.values()), reverse=True)[:max_sentences]
        self._check_room(prompt, sum(longest) + max_sentences * len(separator) + 1)

        def on_quote(n: int | None) -> None:
            said.append(texts[n])
            if on_text:
                on_text(said[-1] if len(said) == 1 else f"\n{said[-1]}")

        said: list[str] = []
        recorder = self._recorder(capture)
        started = time.perf_counter()
        with torch.inference_mode(), recorder or contextlib.nullcontext():
            steps = Stepper(self.model)
            first = steps.feed(prompt.token_ids)[-1]
            prefill_seconds = time.perf_counter() - started
            quotes = decode_quotes(
                answers,
                first,
                feed=steps.feed,
                rewind=steps.rewind,
                end=end,
                separator=separator,
                most=max_sentences,
                on_quote=on_quote,
                is_cancelled=lambda: cancel is not None and cancel.is_cancelled,
            )
        timing = Timing(prefill_seconds, time.perf_counter() - started - prefill_seconds)
        logs = np.asarray(quotes.log_probabilities, dtype=np.float32)
        finish: FinishReason = "cancelled" if quotes.was_cancelled else "stop"
        generation = self._result(
            prompt, "\n".join(said), quotes.token_ids, logs, recorder, finish, timing
        )
        ranked = sorted(quotes.scores.items(), key=lambda item: -item[1])
        return replace(
            generation,
            candidates=tuple(Candidate(n, texts[n], score) for n, score in ranked),
            quotes=tuple(n for n in quotes.keys if n is not None),
        )

    def read(self, prompt: Prompt) -> RoutingTrace:
        """Feed `prompt` without answering; which experts each of its tokens used.

        Raises ``ValueError`` for a dense model.
        """
        self._check_room(prompt, 0)
        import torch

        with torch.inference_mode(), RoutingRecorder(self.model) as recorder:
            Stepper(self.model).feed(prompt.token_ids)
        return recorder.trace(self._token_table(prompt, ()))

    def _content_ids(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def _recorder(self, capture: bool) -> RoutingRecorder | None:
        return RoutingRecorder(self.model) if capture and self.is_moe else None

    def _check_room(self, prompt: Prompt, new_tokens: int) -> None:
        need = len(prompt.token_ids) + new_tokens
        if need > self.context:
            raise PromptTooLong(
                f"prompt ({len(prompt.token_ids)}) and answer ({new_tokens}) need {need} tokens, the context is "
                f"{self.context}: use generator.with_context({need}) or fewer passages"
            )

    def _generation_options(self, sampling: Sampling, max_new_tokens: int) -> dict[str, Any]:
        from transformers import GenerationConfig

        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_ids(self.model, self.tokenizer),
            pad_token_id=pad_id(self.model, self.tokenizer),
            do_sample=sampling.temperature > 0,
        )
        if sampling.temperature > 0:
            config.temperature, config.top_p, config.top_k = sampling.temperature, sampling.top_p, 0
        return {"generation_config": config}

    def _finish(self, answer: Sequence[int], watch: Watch) -> FinishReason:
        if answer and answer[-1] in stop_ids(self.model, self.tokenizer):
            return "stop"
        return "cancelled" if watch.was_cancelled else "length"

    def _result(
        self,
        prompt: Prompt,
        text: str,
        answer: Sequence[int],
        log_probabilities: NDArray[np.float32],
        recorder: RoutingRecorder | None,
        finish: FinishReason,
        timing: Timing,
    ) -> Generation:
        if recorder is not None:
            note = ""
        else:
            note = (
                "capture was off"
                if self.is_moe
                else f"{self.name} is dense: it has no experts to choose"
            )
        return Generation(
            text=text,
            token_ids=tuple(answer),
            log_probabilities=log_probabilities,
            finish_reason=finish,
            routing=None if recorder is None else recorder.trace(self._token_table(prompt, answer)),
            routing_note=note,
            timing=timing,
            cache=CacheReport(computed_tokens=len(prompt.token_ids), reused_tokens=0),
            regime=self.regime,
            generator=self.name,
        )

    def _token_table(self, prompt: Prompt, answer: Sequence[int]) -> TokenTable:
        codes, names = prompt.segment_codes()
        _, spans = decode_answer(self.tokenizer, answer)
        return TokenTable(
            token_ids=[*prompt.token_ids, *answer],
            texts=tuple(self.tokenizer.convert_ids_to_tokens([*prompt.token_ids, *answer])),
            segments=np.concatenate([codes, np.full(len(answer), len(names), dtype=np.int16)]),
            segment_names=(*names, "answer"),
            spans=np.concatenate([prompt.token_spans, spans]),
            prompt_tokens=len(prompt.token_ids),
        )
