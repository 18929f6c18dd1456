"""A prompt with a given answer, computed once → how likely the answer is with other experts, many alternatives at a
time.

An edit in layer l changes nothing before that layer, and nothing before the first token that it is meant for. So each
alternative starts from the hidden states that reached layer l and from the keys and values of the tokens before, and
alternatives are rows of one batch. Every batch holds one row without an edit: what a batch rounds differently is not
taken for an effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken
from workbench.errors import Cancelled, PromptTooLong
from workbench.generation.kv_cache import empty_like, show, take_prefix, view_rows
from workbench.generation.options import EXACT, GREEDY, Request
from workbench.generation.prompts import Prompt, segment_mask
from workbench.generation.sequences import TokenSequence, stoppable
from workbench.routing.intervene import Edit, check_edits, intervened_rows
from workbench.routing.statistics import expert_counts

if TYPE_CHECKING:
    import torch

    from workbench.generation.phi import Generator


_TIE_TOKENS = 4096  # looked at together
BATCH_TOKENS = 8192  # of all rows of a batch, where one pass over a prompt may not have more


class Fork:
    """An answer to be scored with other experts; made by :func:`open_fork`.

    ``log_probabilities`` [answer tokens] (nats) are those without an edit. ``counts`` [layers, experts] say how often
    the tokens that are meant choose each expert, ``ties`` how often it was not chosen but so near that it takes some of
    the gate of one that was: banning it changes something too. ``passes`` is the work so far, in passes of prompt and
    answer through all layers for one row.
    """

    def __init__(
        self,
        generator: Generator,
        sequence: TokenSequence,
        ids: Sequence[int],
        *,
        answer: Sequence[int],
        meant: NDArray[np.bool_] | None,
        most_rows: int,
        cancel: CancelToken | None,
    ) -> None:
        self._model, self._sequence, self._cancel = generator.model, sequence, cancel
        self._meant, self._answer = meant, list(answer)
        self._first = len(sequence.token_ids)
        self._tokens = len(ids) - self._first  # what alternatives compute
        self._whole = len(ids)
        self._room: Any = None  # keys and values of the tokens before, once for every row
        self._is_open = True
        self._hidden: list[torch.Tensor] = []  # what reached each layer: [1, tokens, hidden size]
        self.passes = 0.0
        # one for the row without an edit
        most_tokens = max(generator.pace(EXACT).whole, BATCH_TOKENS)
        self.rows = max(2, min(most_rows, most_tokens // self._tokens))
        if self._first:
            room = max(generator.prefixes.budget_bytes, generator.cache_bytes(generator.context))
            self.rows = max(2, min(self.rows, room // generator.cache_bytes(self._whole)))
        self.log_probabilities = self._baseline(ids)
        choices = sequence.choices(ids)
        assert (
            choices is not None and sequence.recorder is not None
        )  # a fork is opened with capture
        self._recorder = sequence.recorder
        own = np.ones(len(ids), dtype=bool) if meant is None else meant
        experts = choices.experts[own]
        self.counts = expert_counts(experts, generator.model.config.num_local_experts)
        assert choices.router_logits is not None
        self.ties = _near_ties(
            choices.router_logits[own], experts, generator.model.config.router_jitter_noise
        )

    def score(self, alternatives: Sequence[Sequence[Edit]]) -> NDArray[np.float64]:
        """Log-probability of the whole answer (nats) under each of `alternatives` less that without: [alternatives].

        Raises ``Cancelled`` between two layers, ``ValueError`` for edits that cannot be made.
        """
        if not self._is_open:
            raise ValueError("the block of open_fork has ended: score within it")
        for edits in alternatives:
            check_edits(self._model, edits)
        layers = len(self._hidden)
        starts = [
            min((0 if e.layers is None else min(e.layers) for e in edits), default=layers)
            for edits in alternatives
        ]
        found = np.zeros(len(alternatives))
        order = sorted(range(len(alternatives)), key=lambda place: starts[place])
        order = [place for place in order if starts[place] < layers]
        for at in range(0, len(order), self.rows - 1):
            places = order[at : at + self.rows - 1]
            rows = [(), *(alternatives[place] for place in places)]
            logs = self._from_layer(starts[places[0]], rows)
            found[places] = logs[1:] - logs[0]
        return found

    def _baseline(self, ids: Sequence[int]) -> NDArray[np.float32]:
        def keep(_layer: Any, args: tuple[Any, ...]) -> None:
            self._hidden.append(args[0])

        handles = [layer.register_forward_pre_hook(keep) for layer in self._model.model.layers]
        try:
            with stoppable(self._model, self._cancel):
                laws = self._sequence.feed(ids[self._first :], keep=len(self._answer))
        finally:
            for handle in handles:
                handle.remove()
        if len(self._sequence.token_ids) < len(ids):
            raise Cancelled("computing an answer was cancelled")
        self.passes += self._tokens / self._whole
        return laws[np.arange(len(self._answer)), self._answer]

    def _from_layer(self, start: int, rows: Sequence[Sequence[Edit]]) -> NDArray[np.float64]:
        """Log-probability of the answer in each row, computed from layer `start` on: [rows]."""
        import torch

        inner, layers, count = self._model.model, self._model.model.layers, len(rows)
        cache = self._cache(count)
        meant = None if self._meant is None else self._meant[self._first :]
        output = None
        with (
            self._recorder.paused(),
            intervened_rows(self._model, rows, meant=meant),
            stoppable(self._model, self._cancel),
        ):
            try:
                inner.layers = layers[start:]  # the model's own loop, from there on
                output = self._model(
                    inputs_embeds=self._hidden[start].expand(count, -1, -1),
                    past_key_values=cache,
                    use_cache=cache is not None,
                    logits_to_keep=len(self._answer),
                )
            finally:
                inner.layers = layers
        if output is None:
            raise Cancelled("scoring an answer with other experts was cancelled")
        self.passes += count * (len(layers) - start) / len(layers) * self._tokens / self._whole
        answer = torch.tensor(self._answer, device=output.logits.device)
        laws = output.logits.float().log_softmax(-1)  # [rows, answer tokens, vocabulary]
        each = laws.gather(2, answer.expand(count, -1)[:, :, None])[:, :, 0]
        return np.asarray(each.double().sum(dim=1).cpu().numpy())

    def _cache(self, rows: int) -> Any:
        """Keys and values of the tokens before those that are computed, in every row; None if there are none."""
        if self._first == 0:
            return None
        if self._room is None:
            source = self._sequence.cache
            self._room = empty_like(source, rows=self.rows, capacity=self._whole)
            take_prefix(self._room, source, self._first)
        view = view_rows(self._room, 0, rows, padding=0)
        show(view, self._first)
        return view

    def close(self) -> None:
        """Let the tensors go."""
        self._is_open, self._room = False, None
        self._hidden.clear()


@contextlib.contextmanager
def open_fork(
    generator: Generator,
    prompt: Prompt,
    answer: Sequence[int],
    *,
    segment: str | None = None,
    most_rows: int = 17,
    cancel: CancelToken | None = None,
) -> Iterator[Fork]:
    """Compute `prompt` and `answer` (token ids) once; within the block it can be scored with other experts.

    Edits hold for the tokens of `segment` ("evidence", "question", "answer", …), or for all. Other threads wait until
    the block ends. Held meanwhile are the hidden states of all layers (layers × tokens × hidden size numbers) and,
    where tokens stand before the segment, their keys and values once for every row of a batch.

    What decides on the first token of an answer is the last one of its prompt, which is of no segment "answer".

    Raises
    ------
    ValueError
        The model is dense, the segment is missing or is one token that is never routed, the answer is empty.
    PromptTooLong
        More tokens than fit into one pass here would have to be computed.
    Cancelled
        `cancel` was set.

    >>> from workbench.generation.loading import load_generator
    >>> from workbench.generation.prompts import plain_prompt
    >>> generator = load_generator("pocket")
    >>> prompt = plain_prompt("Which valve leaked?", tokenizer=generator.tokenizer, budget_tokens=100)
    >>> answer = generator.generate(prompt, max_new_tokens=4).token_ids
    >>> with open_fork(generator, prompt, answer) as fork:
    ...     effects = fork.score([[Edit("ban", 0, layers=(4,))], [Edit("ban", 1, layers=(4,))]])
    >>> effects.shape
    (2,)
    """
    generator.check_routes()
    if not len(answer):
        raise ValueError("the answer has no token")
    ids = [*prompt.token_ids, *answer[:-1]]
    meant, first = None, 0
    if segment is not None:
        meant = segment_mask(prompt, segment).at(0, len(ids))
        if not meant.any():
            raise ValueError(f"segment {segment!r} has no routed token: nothing would change")
        first = min(int(meant.argmax()), len(prompt.token_ids) - 1)
    most = max(generator.pace(EXACT).whole, generator.pace(EXACT).chunk)
    if len(ids) - first > most:
        raise PromptTooLong(
            f"{len(ids) - first} tokens would be computed for each alternative, and {most} fit into one pass here: "
            "use fewer passages, or limit the change to segment='answer'"
        )
    request = Request(len(ids) - first, GREEDY, EXACT, (), cancel, "logits")
    with generator.sequence(ids[: first + 1], request) as sequence:
        if not sequence.prefill(ids[:first], cancel=cancel):
            raise Cancelled("reading a prompt was cancelled")
        fork = Fork(
            generator,
            sequence,
            ids,
            answer=answer,
            meant=meant,
            most_rows=most_rows,
            cancel=cancel,
        )
        try:
            yield fork
        finally:
            fork.close()


def _near_ties(
    router_logits: NDArray[np.float16], experts: NDArray[np.uint8], jitter: float
) -> NDArray[np.int64]:
    """How often an expert that was not chosen may stand in the softmax of one that was: [layers, experts].

    sparsemixer weighs those within 2 × jitter of the chosen one (arXiv 2409.12136); three times here, for the logits
    are recorded in float16.
    """
    tokens, layers, n_experts = router_logits.shape
    found = np.zeros((layers, n_experts), dtype=np.int64)
    for start in range(0, tokens, _TIE_TOKENS):
        block = slice(start, start + _TIE_TOKENS)
        logits = router_logits[block].astype(np.float32)
        chosen = experts[block].astype(np.int64)
        best = np.take_along_axis(logits, chosen, axis=2)  # [tokens, layers, k]
        is_near = np.zeros(logits.shape, dtype=bool)
        for choice in range(best.shape[2]):
            top = best[:, :, choice, None]
            is_near |= top - logits <= 3 * jitter * np.maximum(np.abs(logits), top)
        np.put_along_axis(is_near, chosen, False, axis=2)
        found += is_near.sum(axis=0)
    return found
