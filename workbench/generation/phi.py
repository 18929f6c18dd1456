"""A loaded Phi answers: prompt → generation, with routing recorded and the rotary regime pinned.

A prompt is read over a cache that earlier prompts may have begun; then ordinary decoding is transformers' ``generate``,
and the quote style steps the model itself.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken
from workbench.checkpoints.finding import release_frames
from workbench.errors import Cancelled, DoesNotFit, PromptTooLong
from workbench.generation.batches import plan_buckets
from workbench.generation.chat_tokens import answer_ids
from workbench.generation.decoding import OnText, decode_answer, stop_ids
from workbench.generation.generating import generate_one, generate_rows
from workbench.generation.longrope import Regime, check_regime, pin_regime, regime_for
from workbench.generation.memory import (
    MemoryPlan,
    bits_in_words,
    cache_bytes_per_token,
    device_memory,
    prefill_tokens,
)
from workbench.generation.options import EXACT, GREEDY, Capture, Decoding, Request, Sampling
from workbench.generation.placement import find_placement, offloaded_weights
from workbench.generation.planning import plan_for
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.prompts import ABSTENTION, Prompt, Source, known_marks, segment_mask
from workbench.generation.quoting import decode_quotes
from workbench.generation.results import CacheReport, Candidate, FinishReason, Generation, Timing
from workbench.generation.sequences import Pace, TokenSequence, Turn, open_sequence, weights_key
from workbench.routing.capture import Choices, RoutingRecorder, TokenTable
from workbench.routing.intervene import Edit, intervened, intervention_in, is_intervened
from workbench.routing.trace import RoutingTrace, TracedSource

if TYPE_CHECKING:
    from workbench.generation.expert_cache import ExpertUse

log = logging.getLogger("workbench")


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """A loaded model that answers prompts of up to ``context`` tokens, the answer included.

    ``model`` and ``tokenizer`` are the transformers objects. ``regime`` is LongRoPE's, decided by ``context``.
    ``prefixes`` holds the keys and values of earlier prompts, so that a prompt that begins alike reads only its rest.
    A prompt of up to ``whole_tokens`` is read in one pass, a longer one in chunks. ``decoding`` is what calls use that
    name none. Threads take turns.
    """

    name: str
    model: Any
    tokenizer: Any
    context: int
    regime: Regime
    reason: str = ""
    prefixes: PrefixCache = field(default_factory=lambda: PrefixCache(0))
    whole_tokens: int = 0
    decoding: Decoding = EXACT
    _turn: Turn = field(default_factory=Turn, repr=False)
    _warned: set[str] = field(default_factory=set, repr=False)

    def __repr__(self) -> str:
        kind = ", ".join(["MoE" if self.is_moe else "dense", *self._held()])
        return (
            f"Generator({self.name!r}, {kind}, context {self.context:,} tokens, {self.regime} regime, "
            f"{self.device}; next: wb.ask(question, retriever=…, generator=…))"
        )

    def _held(self) -> list[str]:
        """In words, how weights are held and where, if not as ever."""
        from workbench.generation.expert_cache import all_slots
        from workbench.generation.quantized import quantization_of

        quantization, slots = quantization_of(self.model), all_slots(self.model)
        found = getattr(self.model, "hf_device_map", {}).values()
        places = {f"cuda:{place}" if isinstance(place, int) else str(place) for place in found}
        return [
            *([f"{bits_in_words(quantization)} weights"] if quantization else []),
            *([f"{slots[0].count} of each layer's experts cached"] if slots else []),
            *([f"on {', '.join(sorted(places))}"] if len(places) > 1 else []),
        ]

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

    @property
    def trained_tokens(self) -> int | None:
        """The longest prompt with answer this checkpoint was trained on, where its config says (``trained_tokens``).

        >>> from workbench.generation.loading import load_generator
        >>> load_generator("pocket").trained_tokens
        2048
        """
        tokens = getattr(self.model.config, "trained_tokens", None)
        return None if tokens is None else int(tokens)

    def check_routes(self) -> None:
        """Raise ``ValueError`` for a dense model, naming what to open instead."""
        if not self.is_moe:
            raise ValueError(
                f"{self.name} is a dense model: it has no router to look at; open "
                "microsoft/Phi-3.5-MoE-instruct, or the embedded 'pocket'"
            )

    def with_context(self, context: int) -> Generator:
        """The same weights for another context; the regime follows from it.

        Parameters are shared, only the module objects are new: both generators stay usable side by side. They share
        the prefix cache too, which keeps regimes apart. Raises ``DoesNotFit`` before anything is allocated.
        """
        regime = regime_for(self.model.config, context)
        plan = self._plan(context)
        if not plan.fits:
            raise DoesNotFit(plan.refusal)
        self.prefixes.suggest_budget(plan.prefix_bytes)
        with self._turn.taken():  # hooks of a running call must not be copied
            if is_intervened(self.model):
                raise ValueError(
                    "experts are being intervened in: take another context before or after"
                )
            tensors = [*self.model.parameters(), *self.model.buffers()]
            shared = {id(tensor): tensor for tensor in tensors} | offloaded_weights(self.model)
            model = copy.deepcopy(self.model, shared)
        pin_regime(model, regime)
        check_regime(model, regime)
        model.eval()  # the new rotary embedding too
        return replace(
            self,
            model=model,
            context=context,
            regime=regime,
            whole_tokens=plan.whole_tokens,
            _turn=Turn(),
        )

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        decoding: Decoding | None = None,
        stop: Sequence[str] = (),
        on_text: OnText | None = None,
        cancel: CancelToken | None = None,
        capture: Capture = True,
    ) -> Generation:
        """Answer `prompt` by ordinary decoding; ``on_text`` receives the text as it grows.

        `capture` says whether the routing is recorded: with ``"logits"`` the router logits too, with
        ``"contributions"`` the norms of what each expert adds to its layer's output, with ``"all"`` both. The text ends
        before the first of the `stop` strings. Cancelling keeps what there is, with ``finish_reason`` "cancelled".
        Raises ``PromptTooLong`` when prompt and answer exceed the context (nothing is ever cut silently) and
        ``DoesNotFit`` when memory runs out, after which the generator is as usable as before.
        """
        _check_new(max_new_tokens)
        _check_prompts([prompt])
        self._check_room(len(prompt.token_ids), max_new_tokens)
        decoding = decoding or self.decoding
        request = Request(max_new_tokens, sampling, decoding, stop, cancel, capture)
        with _releasing():
            return generate_one(self, prompt, request, on_text=on_text)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 256,
        most_rows: int = 8,
        sampling: Sampling = GREEDY,
        decoding: Decoding | None = None,
        stop: Sequence[str] = (),
        cancel: CancelToken | None = None,
        capture: Capture = True,
    ) -> list[Generation]:
        """Answer several prompts, up to `most_rows` at a time; the generations stand in the order of the prompts.

        Rows are bucketed by length and by the memory set aside for keys and values; what prompts share at their
        beginning is read once. Greedy tokens are those of ``generate``; sampled ones are drawn for the whole bucket, so
        they depend on what is beside them. Every row has the context's regime, whatever its length; one row that
        exceeds the context is refused before anything is computed. ``Generation.timing`` is that of the row's bucket.
        """
        _check_new(max_new_tokens)
        _check_prompts(prompts)
        for row, prompt in enumerate(prompts):
            self._check_room(len(prompt.token_ids), max_new_tokens, f"row {row}: ")
        decoding = decoding or self.decoding
        if decoding.prompt_lookup_tokens:
            raise ValueError(
                "prompt lookup decodes one row: use generate, or prompt_lookup_tokens=0"
            )
        if decoding.cache not in ("reserved", "int8", "fp8"):
            raise ValueError(f"cache={decoding.cache!r} holds one row: use 'reserved' or 'int8'")
        request = Request(max_new_tokens, sampling, decoding, stop, cancel, capture)
        room = max(self.prefixes.budget_bytes, self.cache_bytes(self.context, decoding))
        buckets = plan_buckets(
            [len(prompt.token_ids) for prompt in prompts],
            new_tokens=max_new_tokens,
            most_rows=most_rows,
            most_tokens=room // self.cache_bytes(1, decoding),
        )
        found: dict[int, Generation] = {}
        for bucket in buckets:
            rows = [prompts[place] for place in bucket]
            with _releasing():
                found |= zip(bucket, generate_rows(self, rows, request), strict=True)
        return [found[place] for place in range(len(prompts))]

    def quote(
        self,
        prompt: Prompt,
        *,
        max_sentences: int = 1,
        may_abstain: bool = True,
        decoding: Decoding | None = None,
        on_text: OnText | None = None,
        cancel: CancelToken | None = None,
        capture: Capture = True,
    ) -> Generation:
        """Answer with verbatim sources and their marks, ``[n] text``, or with the abstention sentence.

        The choice is the model's own log-probability over all admissible answers (``Generation.candidates``). After a
        sentence the model may end its turn or, up to `max_sentences`, quote another.
        """
        if max_sentences < 1:
            raise ValueError(f"max_sentences={max_sentences} must be at least 1")
        if not may_abstain and not prompt.sources:
            raise ValueError("there is no source to quote, and abstaining is not allowed")
        decoding = decoding or self.decoding
        if decoding.cache in ("static", "none"):
            raise ValueError(
                f"quoting takes tokens back, which cache={decoding.cache!r} cannot: use 'reserved'"
            )
        texts: dict[int | None, str] = {None: ABSTENTION} if may_abstain else {}
        texts |= {source.n: f"[{source.n}] {source.text}" for source in prompt.sources}

        def tokens_of(n: int | None, *, continues: bool) -> list[int]:
            marks = [] if n is None else [0]
            return answer_ids(self.tokenizer, texts[n], own_marks=marks, continues=continues)

        answers = {n: tokens_of(n, continues=False) for n in texts}
        end = stop_ids(self.model, self.tokenizer)[0]
        separator = answer_ids(self.tokenizer, "\n", continues=True)
        longest = sorted((len(ids) for ids in answers.values()), reverse=True)[:max_sentences]
        # a later sentence may begin with one token more than a first one
        most = sum(longest) + max_sentences * (len(separator) + 1) + 1
        self._check_room(len(prompt.token_ids), most)

        def on_quote(n: int | None) -> None:
            said.append(texts[n])
            if on_text:
                on_text(said[-1] if len(said) == 1 else f"\n{said[-1]}")

        said: list[str] = []
        ids = list(prompt.token_ids)
        started = time.perf_counter()
        request = Request(most, GREEDY, decoding, (), cancel, capture)
        with self.sequence(ids, request) as sequence:
            is_read = sequence.prefill(ids[:-1], cancel=cancel)
            first = sequence.feed(ids[-1:])[-1] if is_read else np.zeros(0, dtype=np.float32)
            prefill_seconds = time.perf_counter() - started
            quotes = decode_quotes(
                answers,
                first,
                feed=sequence.feed,
                rewind=sequence.rewind,
                end=end,
                separator=separator,
                most=max_sentences,
                on_quote=on_quote,
                is_cancelled=lambda: cancel is not None and cancel.is_cancelled,
                later=lambda n: tokens_of(n, continues=True),
            )
            choices = sequence.choices([*ids, *quotes.token_ids])
        generation = self.result(
            prompt,
            quotes.token_ids,
            text="\n".join(said),
            logs=np.asarray(quotes.log_probabilities, dtype=np.float32),
            choices=choices,
            finish="cancelled" if quotes.was_cancelled else "stop",
            timing=Timing(prefill_seconds, time.perf_counter() - started - prefill_seconds),
            computed=min(len(ids) - sequence.reused_tokens, sequence.computed_tokens),
            reused=sequence.reused_tokens,
        )
        ranked = sorted(quotes.scores.items(), key=lambda item: -item[1])
        return replace(
            generation,
            candidates=tuple(Candidate(n, texts[n], score) for n, score in ranked),
            quotes=tuple(n for n in quotes.keys if n is not None),
        )

    def score(
        self,
        prompt: Prompt,
        answer: Sequence[int],
        *,
        cancel: CancelToken | None = None,
        capture: Capture = True,
    ) -> Generation:
        """How likely a given `answer` (token ids) is after `prompt`, and how it is routed: teacher forcing.

        What ``generate`` says of its own answer is what ``score`` says of it; ``finish_reason`` is "given". The same
        answer after two prompts shows what of it is due to the prompt. Raises ``Cancelled``.

        >>> from workbench.generation.loading import load_generator
        >>> from workbench.generation.prompts import plain_prompt
        >>> generator = load_generator("pocket")
        >>> prompt = plain_prompt("Which valve leaked?", tokenizer=generator.tokenizer, budget_tokens=100)
        >>> said = generator.generate(prompt, max_new_tokens=5)
        >>> again = generator.score(prompt, said.token_ids)
        >>> bool(np.abs(again.log_probabilities - said.log_probabilities).max() < 1e-4)
        True
        """
        if isinstance(answer, str):
            raise ValueError("answer must be token ids, like generation.token_ids, and is a text")
        if not len(answer):
            raise ValueError("the answer has no token")
        _check_prompts([prompt])
        self._check_room(len(prompt.token_ids), len(answer))
        ids = list(prompt.token_ids)
        request = Request(len(answer), GREEDY, _readable(self.decoding), (), cancel, capture)
        started = time.perf_counter()
        with _releasing(), self.sequence(ids, request) as sequence:
            if not sequence.prefill(ids[:-1], cancel=cancel):
                raise Cancelled("scoring an answer was cancelled")
            prefill_seconds = time.perf_counter() - started
            laws = sequence.feed([ids[-1], *answer[:-1]])
            choices = sequence.choices([*ids, *answer])
            computed = sequence.computed_tokens
        return self.result(
            prompt,
            answer,
            logs=laws[np.arange(len(answer)), list(answer)],
            choices=choices,
            finish="given",
            timing=Timing(prefill_seconds, time.perf_counter() - started - prefill_seconds),
            computed=min(len(ids) - sequence.reused_tokens, computed),
            reused=sequence.reused_tokens,
        )

    def quote_ids(self, prompt: Prompt, n: int) -> tuple[int, ...]:
        """The tokens of the answer that quotes source `n` of `prompt` and ends, as ``quote`` would say it."""
        found = [source.text for source in prompt.sources if source.n == n]
        if not found:
            raise ValueError(f"the prompt has no source [{n}]; it has {len(prompt.sources)}")
        said = answer_ids(self.tokenizer, f"[{n}] {found[0]}", own_marks=[0])
        return (*said, stop_ids(self.model, self.tokenizer)[0])

    def read(
        self, prompt: Prompt, *, capture: Literal[True, "logits", "contributions", "all"] = True
    ) -> RoutingTrace:
        """Feed `prompt` without answering; which experts each of its tokens used.

        `capture` is that of ``generate``, but for False. Raises ``ValueError`` for a dense model.
        """
        self.check_routes()
        if not capture:
            raise ValueError("capture=False records nothing, and reading is for what is recorded")
        _check_prompts([prompt])
        self._check_room(len(prompt.token_ids), 0)
        ids = list(prompt.token_ids)
        request = Request(0, decoding=_readable(self.decoding), capture=capture)
        with self.sequence(ids, request) as sequence:
            sequence.prefill(ids)
            choices = sequence.choices(ids)
        assert choices is not None  # recorded, for it is a MoE
        return self._trace(prompt, (), choices, np.zeros(0, dtype=np.float32))

    @contextlib.contextmanager
    def intervened(
        self, edits: Sequence[Edit], *, prompt: Prompt | None = None, segment: str | None = None
    ) -> Iterator[None]:
        """Within the block experts are used as `edits` say: for every token, or for those of a segment of `prompt`.

        `segment` is "question", "evidence", "evidence 3", "answer" (all that is generated), … and needs the `prompt`
        that will be answered. Traces made within tell the edits in their ``origin``. What is computed within is never
        reused outside, nor the other way round. Raises ``ValueError`` for a dense model, an unknown segment, or edits
        that cannot be made together.

        >>> from workbench.generation.loading import load_generator
        >>> from workbench.generation.prompts import plain_prompt
        >>> from workbench.routing.intervene import Edit
        >>> generator = load_generator("pocket")
        >>> prompt = plain_prompt("Which valve leaked?", tokenizer=generator.tokenizer, budget_tokens=100)
        >>> with generator.intervened([Edit("ban", expert=3)]):
        ...     trace = generator.read(prompt)
        >>> trace.counts()[:, 3].tolist()
        [0, 0, 0, 0, 0]
        """
        if (prompt is None) != (segment is None):
            raise ValueError(
                "give prompt and segment together, or neither to intervene in every token"
            )
        tokens = None
        if prompt is not None and segment is not None:
            _check_prompts([prompt])
            tokens = segment_mask(prompt, segment)
        with contextlib.ExitStack() as stack:
            with self._turn.taken():  # not in the middle of another thread's answer
                stack.enter_context(intervened(self.model, edits, tokens=tokens))
            try:
                yield
            finally:
                with self._turn.taken():
                    stack.close()

    def cache_bytes(self, tokens: int, decoding: Decoding | None = None) -> int:
        """Bytes that the keys and values of `tokens` tokens take where the model computes."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        kv = (decoding or self.decoding).kv
        return tokens * cache_bytes_per_token(self.model.config, dtype, kv)

    def pace(self, decoding: Decoding) -> Pace:
        """How many tokens of a prompt are fed at a time."""
        if decoding.prefill_tokens is not None:
            return Pace(decoding.prefill_tokens, whole=decoding.prefill_tokens)
        return Pace(prefill_tokens(self.device), whole=self.whole_tokens)

    def sequence(
        self, token_ids: Sequence[int], request: Request
    ) -> AbstractContextManager[TokenSequence]:
        """A sequence for `token_ids` and the new tokens of `request`; other threads wait until it is closed."""
        config = self.model.config
        captured = request.capture if self.is_moe else False

        def key_of() -> Hashable:
            return (
                weights_key(self.model),
                self.regime,
                str(self.model.dtype),
                config._attn_implementation,
                getattr(config, "_experts_implementation", None),
                request.decoding.cache,
                captured,
            )

        return open_sequence(
            self.model,
            token_ids,
            room=len(token_ids) + request.max_new_tokens,
            room_bytes=self.cache_bytes(len(token_ids) + request.max_new_tokens, request.decoding),
            decoding=request.decoding,
            pace=self.pace(request.decoding),
            key_of=key_of,
            prefixes=self.prefixes,
            recorder=RoutingRecorder(
                self.model, logits=request.has_logits, contributions=request.has_contributions
            )
            if captured
            else None,
            turn=self._turn,
            cancel=request.cancel,
        )

    def result(
        self,
        prompt: Prompt,
        answer: Sequence[int],
        *,
        logs: NDArray[np.float32],
        choices: Choices | None,
        finish: FinishReason,
        timing: Timing,
        computed: int,
        reused: int,
        text: str | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """What is returned for `prompt`: the answer's text (decoded if not given) and all that is known about it."""
        if choices is not None:
            note = ""
        else:
            dense = f"{self.name} is dense: it has no experts to choose"
            note = "capture was off" if self.is_moe else dense
        warning = self._beyond_training(len(prompt.token_ids) + len(answer))
        if warning and "length" not in self._warned:
            self._warned.add("length")
            log.warning("%s", warning)
        return Generation(
            text=decode_answer(self.tokenizer, answer, stop)[0] if text is None else text,
            token_ids=tuple(answer),
            log_probabilities=logs,
            finish_reason=finish,
            routing=None if choices is None else self._trace(prompt, answer, choices, logs, stop),
            routing_note=note,
            timing=timing,
            cache=CacheReport(computed_tokens=computed, reused_tokens=reused),
            regime=self.regime,
            generator=self.name,
            warning=warning,
        )

    @property
    def expert_use(self) -> ExpertUse | None:
        """How often the experts that answers used were on the device; None without ``expert_cache``.

        What an answer did is the difference of two: ``after - before``.

        >>> from workbench.generation.loading import load_generator
        >>> load_generator("pocket", expert_cache=4).expert_use.copied_bytes
        0
        """
        from workbench.generation.expert_cache import expert_use

        return expert_use(self.model)

    def _beyond_training(self, tokens: int) -> str:
        """What to expect of a sequence of so many tokens, "" when the checkpoint was trained on as many."""
        if self.trained_tokens is None or tokens <= self.trained_tokens:
            return ""
        return (
            f"prompt and answer have {tokens:,} tokens and {self.name} was trained on at most {self.trained_tokens:,}: "
            "expect worse than usual; fewer passages (a lower k) help"
        )

    def _plan(self, context: int) -> MemoryPlan:
        """The plan of the loaded weights at `context`: what they and the kept prefixes hold counts as available."""
        from workbench.generation.expert_cache import all_slots
        from workbench.generation.quantized import quantization_of

        slots, place = all_slots(self.model), self.model.device.type
        held = sum(t.nbytes for t in self.model.parameters() if t.device.type == place)
        held += sum(one.bytes for one in slots) + self.prefixes.held_bytes
        places = getattr(self.model, "hf_device_map", {})
        spread = find_placement(places).bytes if len(set(places.values())) > 1 else None
        available = device_memory(str(self.model.device)) if spread is None else spread
        return plan_for(
            self.model.config,
            context=context,
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=place,
            name=self.name,
            device_bytes=available + held,
            attention=self.model.config._attn_implementation,
            kv=self.decoding.kv,
            quantization=quantization_of(self.model),
            expert_cache=slots[0].count if slots else None,
        )

    def _check_room(self, prompt_tokens: int, new_tokens: int, where: str = "") -> None:
        need, longest = prompt_tokens + new_tokens, self.model.config.max_position_embeddings
        if need > longest:
            raise PromptTooLong(
                f"{where}prompt ({prompt_tokens}) and answer ({new_tokens}) need {need} tokens, and {self.name} was "
                f"made for {longest}: ask for fewer new tokens or shorten the prompt"
            )
        if need > self.context:
            raise PromptTooLong(
                f"{where}prompt ({prompt_tokens}) and answer ({new_tokens}) need {need} tokens, the context is "
                f"{self.context}: use generator.with_context({need}) or fewer passages"
            )

    def origin(self) -> dict[str, str]:
        """What decides how tokens are routed: checkpoint, regime, precision, device, attention, library."""
        import torch
        import transformers

        config = self.model.config
        from workbench.generation.quantized import LoopedExperts, quantization_of

        edits, held = intervention_in(self.model), quantization_of(self.model)
        is_looped = any(isinstance(module, LoopedExperts) for module in self.model.modules())
        experts = "eager" if is_looped else getattr(config, "_experts_implementation", None)
        return {
            **({"edits": edits} if edits else {}),
            **({"quantization": held} if held else {}),
            "generator": self.name,
            "regime": self.regime,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "attention": str(config._attn_implementation),
            "experts": str(experts),
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
        }

    def _trace(
        self,
        prompt: Prompt,
        answer: Sequence[int],
        choices: Choices,
        logs: NDArray[np.float32],
        stop: Sequence[str] = (),
    ) -> RoutingTrace:
        codes, names = prompt.segment_codes()
        _, spans = decode_answer(self.tokenizer, answer, stop)
        ids = [*prompt.token_ids, *answer]
        table = TokenTable(
            token_ids=ids,
            texts=tuple(self.tokenizer.convert_ids_to_tokens(ids)),
            segments=np.concatenate([codes, np.full(len(answer), len(names), dtype=np.int16)]),
            segment_names=(*names, "answer"),
            spans=np.concatenate([prompt.token_spans, spans]),
            prompt_tokens=len(prompt.token_ids),
            log_probabilities=logs,
            sources=tuple(_traced(source) for source in prompt.sources),
            origin=self.origin(),
        )
        return table.trace(choices, self.model.config.num_local_experts)


def _traced(source: Source) -> TracedSource:
    return TracedSource(
        segment=f"evidence {source.n}",
        document_id=source.document_id,
        chunk_id=source.chunk.id,
        start=source.document_start,
        stop=source.document_stop,
        prompt_start=source.start,
        rank=source.rank,
        language=source.language,
    )


@contextlib.contextmanager
def _releasing() -> Iterator[None]:
    """Let an error about memory, which a notebook keeps, hold no tensor of the frames it came through."""
    try:
        yield
    except DoesNotFit as error:
        release_frames(error)
        raise


def _readable(decoding: Decoding) -> Decoding:
    """A way to read without answering: what the generator uses, where it has a cache to read into."""
    return decoding if decoding.cache != "none" else EXACT


def _check_new(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} must be at least 1; generator.read(prompt) reads without answering"
        )


def _check_prompts(prompts: Sequence[Prompt]) -> None:
    for prompt in [prompts] if isinstance(prompts, (str, Prompt)) else prompts:
        if not isinstance(prompt, Prompt):
            raise ValueError(
                f"{prompt!r} is no Prompt: make one by wb.plain_prompt(text, tokenizer=generator.tokenizer, "
                "budget_tokens=generator.context)"
            )
