"""Traces and one expert → its card: what it reads, where, together with whom, and what answers lose without it.

What an expert reads is not what it is for: beside every share stands the level that even use would give, and where a
scan is given, what answers lose when the expert is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.effects.scan import ExpertScan
from workbench.evaluation.retrieval import Comparison, compare
from workbench.markup import counted, escape, fragment, shorten, table
from workbench.routing.pairs import coactivation, transitions
from workbench.routing.pieces import readable, shown
from workbench.routing.statistics import uniform_usage
from workbench.routing.trace import RoutingTrace, check_traces
from workbench.routing.vocabulary import TakenToken, top_tokens, vocabulary_specialization

_AROUND = 8  # tokens shown before and after one in its context
_LEAST_SHARE = 0.02  # of an expert's tokens: experts that it meets less often are not named


@dataclass(frozen=True, slots=True)
class SegmentLoad:
    """How much of a kind of segment ("evidence" for all of it) an expert got: `chosen` of its routed `tokens`."""

    name: str
    tokens: int
    chosen: int

    @property
    def share(self) -> float:
        """Share of the segment's tokens; even use would give the card's ``uniform``."""
        return self.chosen / self.tokens


@dataclass(frozen=True, slots=True)
class CardToken:
    """A word that an expert takes beyond its share, as text with its own space, and how surely."""

    text: str
    taken: TakenToken


@dataclass(frozen=True, slots=True)
class TokenContext:
    """One token that an expert took, with the text around it.

    `trace` and `position` say which token of which trace. `start` and `stop` are characters of `document_id`, which are
    None outside evidence.
    """

    before: str
    text: str
    after: str
    trace: int
    position: int
    segment: str
    document_id: str | None
    start: int | None
    stop: int | None

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        if self.document_id is None:
            return self.segment
        return f"{self.document_id} {self.start}–{self.stop}"


@dataclass(frozen=True, slots=True)
class Companion:
    """Another expert that tokens of this one use: `share` of them, `lift` times what independent choices would give.

    >>> str(Companion(layer=0, expert=4, share=0.25, lift=2.0))
    '4 (25%, lift 2.0)'
    """

    layer: int
    expert: int
    share: float
    lift: float

    def __str__(self) -> str:
        return f"{self.expert} ({self.share:.0%}, lift {self.lift:.1f})"


@dataclass(frozen=True, slots=True, eq=False)
class ExpertCard:
    """What one expert of one layer reads and does. Made by :func:`expert_card`.

    It took `chosen` of `tokens` routed tokens; even use would give each the share `uniform`. ``segments`` hold that by
    kind of segment, ``top`` the words it takes most surely beyond its share, ``contexts`` some tokens it took, evenly
    spaced over all of them. ``partners`` are experts of its layer, ``predecessors`` and ``successors`` those of the
    layers before and after. ``gate_mean`` is its mean gate weight, None where none was recorded, ``effect`` its mean
    effect on answers (nats), None without a scan.
    """

    layer: int
    expert: int
    tokens: int
    chosen: int
    uniform: float
    segments: tuple[SegmentLoad, ...]
    top: tuple[CardToken, ...]
    contexts: tuple[TokenContext, ...]
    partners: tuple[Companion, ...]
    predecessors: tuple[Companion, ...]
    successors: tuple[Companion, ...]
    gate_mean: float | None
    effect: Comparison | None

    def __repr__(self) -> str:
        words = ", ".join(repr(shorten(one.text, 20)) for one in self.top[:3])
        reads = f"; reads {words}" if words else ""
        return (
            f"ExpertCard(expert {self.expert} of layer {self.layer}, {self.summary()}{reads}; "
            "next: plot_expert_card(card))"
        )

    @property
    def is_used(self) -> bool:
        """Whether any token chose it."""
        return self.chosen > 0

    def summary(self) -> str:
        """How much it is used, its gate weight and its effect, in words."""
        if not self.is_used:
            return f"never used by {self.tokens:,} tokens"
        share = self.chosen / self.tokens
        said = (
            f"used by {share:.1%} of {self.tokens:,} tokens ({share / self.uniform:.2g} × uniform)"
        )
        if self.gate_mean is not None:
            said += f", mean gate weight {self.gate_mean:.2f}"
        return said

    def effect_text(self) -> str:
        """Its effect with interval in words; empty without a scan."""
        if self.effect is None:
            return ""
        found = self.effect
        between = f" ({found.low:+.2f} to {found.high:+.2f})" if found.questions > 1 else ""
        return (
            f"effect on {counted(found.questions, 'answer')}: {found.difference:+.2f} nats{between}"
        )

    def _repr_html_(self) -> str:
        return fragment(self.to_html())

    def to_html(self) -> str:
        """The card as tables, escaped, without script or frame."""
        parts = [
            f"<p><strong>Expert {self.expert} of layer {self.layer}</strong></p>",
            f'<p class="wb-note">{escape("; ".join(filter(None, (self.summary(), self.effect_text()))))}</p>',
            table(
                ["segment", "tokens", "taken", "share", "× uniform"],
                [
                    [
                        s.name,
                        f"{s.tokens:,}",
                        f"{s.chosen:,}",
                        f"{s.share:.1%}",
                        f"{s.share / self.uniform:.2f}",
                    ]
                    for s in self.segments
                ],
            ),
        ]
        if self.top:
            rows = [
                [f"“{shown(t.text)}”", f"{t.taken.chosen} of {t.taken.tokens}", f"{t.taken.z:.1f}"]
                for t in self.top
            ]
            parts.append(table(["word", "taken", "z"], rows))
        if self.contexts:
            lines = "".join(
                f'<tr><td class="wb-text">{escape(shown(one.before))}<mark>{escape(shown(one.text))}</mark>'
                f'{escape(shown(one.after))}</td><td class="wb-note">{escape(one.place)}</td></tr>'
                for one in self.contexts
            )
            parts.append(
                f"<table><thead><tr><th>in context</th><th>where</th></tr></thead><tbody>{lines}</tbody></table>"
            )
        for name, found in self.companions().items():
            if found:
                listed = ", ".join(map(str, found))
                parts.append(f'<p class="wb-note">{name}: {listed}</p>')
        return "".join(parts)

    def companions(self) -> dict[str, tuple[Companion, ...]]:
        """Partners, predecessors and successors, by what they are called on the card."""
        return {
            f"with it in layer {self.layer}": self.partners,
            f"before it in layer {self.layer - 1}": self.predecessors,
            f"after it in layer {self.layer + 1}": self.successors,
        }


def expert_card(
    traces: Sequence[RoutingTrace],
    *,
    layer: int,
    expert: int,
    scan: ExpertScan | None = None,
    n: int = 8,
) -> ExpertCard:
    """What expert `expert` of `layer` reads in traces of one model, and what it does for answers if a scan is given.

    Up to `n` words, contexts, partners and neighbours of each kind. A word needs 10 tokens to be named where there are
    5,000 tokens or more, fewer where there are fewer (1 + tokens / 500). Partners are sorted by lift, neighbours by how
    often they are met; those of less than one in fifty of the expert's tokens are left out.

    Raises ``ValueError`` for no trace, traces or a scan of different models, an expert that is not there.

    >>> from workbench.routing.trace import example_trace
    >>> card = expert_card([example_trace()], layer=0, expert=2)
    >>> card
    ExpertCard(expert 2 of layer 0, used by 50.0% of 2 tokens (1 × uniform), mean gate weight 0.75; reads ' valve'; \
next: plot_expert_card(card))
    >>> [(s.name, s.share) for s in card.segments], card.contexts[0].before
    ([('question', 0.0), ('answer', 1.0)], 'Which')
    """
    traces = check_traces(traces)
    if scan is not None and not isinstance(scan, ExpertScan):
        raise ValueError(f"scan={scan!r} is no ExpertScan; give what wb.scan_experts returned")
    _check(traces, layer, expert, scan, n)
    k, n_experts = traces[0].k, traces[0].n_experts
    rows = [np.flatnonzero(trace.rows()) for trace in traces]
    experts = np.concatenate([t.experts[own] for t, own in zip(traces, rows, strict=True)])
    is_own = experts[:, layer] == expert  # [tokens, k]
    taken = np.flatnonzero(is_own.any(axis=1))
    gates = [
        t.gate_weights[own]
        for t, own in zip(traces, rows, strict=True)
        if t.gate_weights is not None
    ]
    gate_mean = None
    if len(gates) == len(traces) and len(taken):
        gate_mean = float(np.concatenate(gates)[:, layer][is_own].astype(np.float64).mean())
    number = np.repeat(np.arange(len(traces)), [len(own) for own in rows])
    position = np.concatenate(rows)
    chosen_places = taken[np.linspace(0, len(taken) - 1, min(n, len(taken))).round().astype(int)]
    return ExpertCard(
        layer=layer,
        expert=expert,
        tokens=len(experts),
        chosen=len(taken),
        uniform=uniform_usage(n_experts, k),
        segments=_segments(traces, layer, expert),
        top=_top(traces, rows, experts[:, [layer]], expert, n),
        contexts=_contexts(traces, number[chosen_places], position[chosen_places]),
        partners=_partners(experts[:, [layer]], layer, expert, n_experts, n),
        predecessors=_neighbours(experts, layer, layer - 1, expert, n_experts, n),
        successors=_neighbours(experts, layer, layer + 1, expert, n_experts, n),
        gate_mean=gate_mean,
        effect=_effect(scan, layer, expert),
    )


def _check(
    traces: Sequence[RoutingTrace], layer: int, expert: int, scan: ExpertScan | None, n: int
) -> None:
    if not any(trace.rows().any() for trace in traces):
        raise ValueError(f"{counted(len(traces), 'trace')} with no routed token; give one at least")
    shapes = {(trace.layers, trace.n_experts, trace.k) for trace in traces}
    if len(shapes) > 1:
        raise ValueError(f"traces of different models: layers, experts and k are {sorted(shapes)}")
    layers, n_experts, _ = shapes.pop()
    if not isinstance(layer, int) or not isinstance(expert, int):
        raise ValueError(f"layer={layer!r}, expert={expert!r} must be whole numbers")
    if not 0 <= layer < layers or not 0 <= expert < n_experts:
        raise ValueError(
            f"layer={layer}, expert={expert}: there are layers 0 to {layers - 1} and experts 0 to {n_experts - 1}"
        )
    if scan is not None and scan.effects.shape[1:] != (layers, n_experts):
        raise ValueError(
            f"the scan is of {list(scan.effects.shape[1:])} layers and experts, the traces of {[layers, n_experts]}"
        )
    if n < 1:
        raise ValueError(f"n={n} is no number of words")


def _segments(traces: Sequence[RoutingTrace], layer: int, expert: int) -> tuple[SegmentLoad, ...]:
    tokens: dict[str, int] = {}
    chosen: dict[str, int] = {}
    for trace in traces:
        is_taken = (trace.experts[:, layer] == expert).any(axis=1)
        for code, name in enumerate(trace.segment_names):
            own = trace.routed & (trace.segments == code)
            kind = name.split(" ")[0]
            tokens[kind] = tokens.get(kind, 0) + int(own.sum())
            chosen[kind] = chosen.get(kind, 0) + int((own & is_taken).sum())
    return tuple(SegmentLoad(name, count, chosen[name]) for name, count in tokens.items() if count)


def _top(
    traces: Sequence[RoutingTrace],
    rows: Sequence[NDArray[np.intp]],
    experts: NDArray[np.uint8],
    expert: int,
    n: int,
) -> tuple[CardToken, ...]:
    ids = np.concatenate([t.token_ids[own] for t, own in zip(traces, rows, strict=True)])
    found = vocabulary_specialization(
        experts, ids, n_experts=traces[0].n_experts, min_count=min(10, 1 + len(ids) // 500)
    )
    texts = {
        int(token): text
        for trace in traces
        for token, text in zip(trace.token_ids, trace.token_texts, strict=True)
    }
    top = top_tokens(found, layer=0, expert=expert, n=n)
    return tuple(CardToken(readable([texts[one.token_id]]), one) for one in top)


def _contexts(
    traces: Sequence[RoutingTrace], number: NDArray[np.intp], position: NDArray[np.intp]
) -> tuple[TokenContext, ...]:
    found = []
    frames = {one: traces[one].to_frame() for one in set(number.tolist())}
    for one, at in zip(number.tolist(), position.tolist(), strict=True):
        texts, row = traces[one].token_texts, frames[one].loc[at]
        is_known = isinstance(row["document"], str)
        found.append(
            TokenContext(
                before=readable(texts[max(at - _AROUND, 0) : at]),
                text=readable([texts[at]]),
                after=readable(texts[at + 1 : at + 1 + _AROUND]),
                trace=one,
                position=at,
                segment=str(row["segment"]),
                document_id=row["document"] if is_known else None,
                start=int(row["document_start"]) if is_known else None,
                stop=int(row["document_stop"]) if is_known else None,
            )
        )
    return tuple(found)


def _partners(
    experts: NDArray[np.uint8], layer: int, expert: int, n_experts: int, n: int
) -> tuple[Companion, ...]:
    """Experts of the same layer, those it meets more often than chance first."""
    k = experts.shape[2]
    if k == 1:
        return ()
    met = coactivation(experts, n_experts=n_experts)
    independent = (k - 1) * n_experts / (k * (n_experts - 1))
    share, lift = met.conditional()[0, expert], met.lift()[0, expert] / independent
    others = [e for e in np.flatnonzero(share >= _LEAST_SHARE).tolist() if e != expert]
    others.sort(key=lambda e: -lift[e])
    return tuple(Companion(layer, e, float(share[e]), float(lift[e])) for e in others[:n])


def _neighbours(
    experts: NDArray[np.uint8], layer: int, other: int, expert: int, n_experts: int, n: int
) -> tuple[Companion, ...]:
    """Experts of the layer `other` that the expert's tokens use, the most frequent first."""
    if not 0 <= other < experts.shape[1]:
        return ()
    k = experts.shape[2]
    share = k * transitions(experts[:, [layer, other]], n_experts=n_experts)[0, expert]
    usage = np.bincount(experts[:, other].reshape(-1), minlength=n_experts) / len(experts)
    order = [e for e in np.argsort(-share, kind="stable").tolist() if share[e] >= _LEAST_SHARE]
    return tuple(
        Companion(other, e, float(share[e]), float(share[e] / usage[e])) for e in order[:n]
    )


def _effect(scan: ExpertScan | None, layer: int, expert: int) -> Comparison | None:
    if scan is None:
        return None
    own = scan.effects[:, layer, expert].tolist()
    return compare(own, [0.0] * len(own))
