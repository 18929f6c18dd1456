"""``workbench route``: a text, a question over an index or a saved trace → which experts were used, and what if not."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.markup import counted, shorten

if TYPE_CHECKING:
    from workbench.answer import Answer
    from workbench.generation.phi import Generator
    from workbench.routing.compare import RoutingComparison
    from workbench.routing.intervene import Edit
    from workbench.routing.trace import RoutingTrace

Result = dict[str, Any]
PASSAGES = 5
BLOCK_TOKENS = 16  # of a lone text that are drawn together; its segments are short
SURPRISING = 0.05  # q-value up to which a cell is reported


def add_route_options(route: argparse.ArgumentParser) -> None:
    """What ``workbench route`` takes beside the generator's options."""
    route.add_argument(
        "text", metavar="TEXT|FILE|TRACE.npz", help="what is read; with --index a question"
    )
    route.add_argument("--index", metavar="DIR", help="answer the text from this index's documents")
    route.add_argument("-k", type=int, help=f"passages to answer from (default: {PASSAGES})")
    route.add_argument("--encoder", help="the encoder of that index, if not the embedded one")
    route.add_argument(
        "--segment",
        metavar="S",
        help="count and draw only question, evidence, 'evidence 2', answer, …; --out keeps all tokens",
    )
    route.add_argument(
        "--contrast", nargs=2, metavar=("X", "Y"), help="usage of segment X less that of Y"
    )
    route.add_argument(
        "--against", metavar="TEXT|FILE|TRACE.npz", help="compare with the routing of another text"
    )
    for action, what in (
        ("ban", "give the tokens of an expert to the next best"),
        ("drop", "let what an expert puts out count nothing"),
        ("force", "have every token use an expert"),
        ("bias", "add to an expert's router logit"),
    ):
        route.add_argument(
            f"--{action}",
            action="append",
            default=[],
            metavar="LAYER:EXPERT=AMOUNT" if action == "bias" else "LAYER:EXPERT",
            help=f"{what}; LAYER may be 'all'; may be given again",
        )
    route.add_argument("--in", dest="inside", metavar="S", help="intervene in this segment alone")
    route.add_argument("--plot", metavar="FILE.png", help="draw the usage, or the contrast")
    route.add_argument(
        "--out",
        metavar="FILE",
        help="save the trace, under the edits if there are any: .npz, .html (a page to look at), .csv or .parquet",
    )


def route_report(
    arguments: argparse.Namespace, generator: Generator | None, *, text_of: Any, open_index: Any
) -> tuple[Result, str, RoutingTrace, RoutingComparison | None]:
    """The JSON object, the text, the trace (under the edits, if there are any) and the comparison, if one was asked
    for.

    `generator` is None where a saved trace is looked at; `text_of` reads an argument that may be a file, `open_index`
    opens the retriever.
    """
    edits = parse_edits(arguments)
    if arguments.contrast and arguments.against is not None:
        raise ValueError("--contrast compares two segments, --against two texts: give one of them")
    if arguments.inside and not edits:
        raise ValueError("--in says where to intervene: give --ban, --drop, --force or --bias too")
    if arguments.k is not None and not arguments.index:
        raise ValueError("-k says how many passages to answer from: give --index too")
    if generator is not None:
        generator.check_routes()
    answer, retriever = None, None
    if arguments.index:
        from workbench.answer import ask

        if generator is None:
            raise ValueError("--index answers a question: give its text, not a saved trace")
        if is_file(arguments.text):
            raise ValueError(
                f"--index answers a question, and {arguments.text} is a file: give its text"
            )
        retriever = open_index()
        k = PASSAGES if arguments.k is None else arguments.k
        answer = ask(arguments.text, retriever=retriever, generator=generator, k=k)
        trace = answer.routing
    else:
        trace = read_trace(arguments.text, generator, text_of=text_of)
    result, lines = _usage(trace, arguments.segment)
    if edits:
        if generator is None:
            raise ValueError("a saved trace cannot be intervened in: give the text again")
        before = trace
        if answer is not None and retriever is not None:
            result["intervention"], more, trace = _changed_answer(
                generator, answer, edits, arguments.inside, retriever.documents
            )
        else:
            result["intervention"], more, trace = _changed_reading(
                generator, text_of(arguments.text), trace, edits, arguments.inside
            )
        met = _met(before, edits, arguments.inside)
        result["intervention"]["met"] = met
        lines += [*more, f"the experts of the edits were chosen {met} times before"]
    comparison = _comparison(arguments, trace, generator, text_of)
    if comparison is not None:
        result["comparison"], more = _compared(comparison, *compared_names(arguments))
        lines += more
    return result, "\n".join(lines), trace, comparison


def read_trace(argument: str, generator: Generator | None, *, text_of: Any) -> RoutingTrace:
    """A saved trace, or the routing of a text."""
    from workbench.generation.prompts import plain_prompt
    from workbench.routing.trace import load_trace

    if is_trace(argument):
        return load_trace(argument)
    if generator is None:
        raise ValueError(
            f"{argument!r} is no saved trace, and a saved trace is compared with another alone"
        )
    from workbench.errors import PromptTooLong

    text = text_of(argument)
    try:
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=generator.context)
    except PromptTooLong as error:
        most = generator.model.config.max_position_embeddings
        raise PromptTooLong(
            f"the text is longer than the context of {generator.context} tokens ({error}); --context takes up to {most}"
        ) from error
    return generator.read(prompt)


def is_trace(argument: str) -> bool:
    """Whether an argument names a saved trace."""
    return Path(argument).suffix == ".npz" and (" " not in argument or is_file(argument))


def is_file(argument: str) -> bool:
    """Whether an argument names a file that is there; a text may be longer than a path can be.

    >>> is_file("Which valve failed first?")
    False
    """
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):
        return False


def parse_edits(arguments: argparse.Namespace) -> list[Edit]:
    """--ban 2:7, --bias all:3=0.5, … as edits.

    >>> from argparse import Namespace
    >>> parse_edits(Namespace(ban=["2:7"], drop=[], force=[], bias=["all:3=-0.5"]))
    [Edit(action='ban', expert=7, layers=(2,), amount=0.0), Edit(action='bias', expert=3, layers=None, amount=-0.5)]
    """
    from workbench.routing.intervene import Edit

    found = []
    for action in ("ban", "drop", "force", "bias"):
        for given in getattr(arguments, action):
            parts = re.fullmatch(
                r"(all|\d+):(\d+)(?:=([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?))?", given
            )
            if parts is None or (parts[3] is None) == (action == "bias"):
                form = (
                    "LAYER:EXPERT=AMOUNT, like 2:7=0.5"
                    if action == "bias"
                    else "LAYER:EXPERT, like 2:7"
                )
                raise ValueError(f"--{action} {given!r} is not of the form {form}")
            layers = None if parts[1] == "all" else (int(parts[1]),)
            found.append(Edit(action, int(parts[2]), layers, float(parts[3] or 0)))
    return found


def _usage(trace: RoutingTrace, segment: str | None) -> tuple[Result, list[str]]:
    from workbench.routing.statistics import balance

    usage, counts = trace.usage(segment), trace.counts(segment)
    found = balance(counts)
    names = dict.fromkeys(name.split(" ")[0] for name in trace.segment_names)
    sizes = {name: int(trace.rows(name).sum()) for name in names}
    result = {
        "layers": trace.layers,
        "experts": trace.n_experts,
        "k": trace.k,
        "tokens": int(trace.rows(segment).sum()),
        "segment": segment,
        "origin": dict(trace.origin),
        "segments": {name: size for name, size in sizes.items() if size},
        "usage": usage.tolist(),
        "entropy": found.entropy.tolist(),
        "effective_experts": found.effective_experts.tolist(),
        "dead": found.dead.tolist(),
    }
    of = f" of the {segment}" if segment else ""
    parts = ", ".join(f"{name} {size}" for name, size in sizes.items() if size)
    lines = [
        f"{result['tokens']} tokens{of}, {trace.layers} layers, {trace.n_experts} experts, {trace.k} each",
        f"segments: {parts}",
    ]
    if "edits" in trace.origin:
        lines.append(f"under an intervention: {trace.origin['edits']}")
    for layer, row in enumerate(usage):
        best = row.argsort()[::-1][:4]
        named = ", ".join(f"{e} ({row[e]:.2f})" for e in best)
        lines.append(
            f"layer {layer:2d}: entropy {found.entropy[layer]:.2f} bits; most used {named}"
        )
    return result, lines


def _comparison(
    arguments: argparse.Namespace, trace: RoutingTrace, generator: Generator | None, text_of: Any
) -> RoutingComparison | None:
    from workbench.routing.compare import compare_routing

    if arguments.contrast:
        x, y = arguments.contrast
        fewest = min(int(trace.rows(x).sum()), int(trace.rows(y).sum()))
        # a question has few tokens: shorter runs, wider intervals
        block = max(4, min(BLOCK_TOKENS, fewest // 2))
        return compare_routing(trace, trace, segment=x, segment_b=y, block_tokens=block)
    if arguments.against is not None:
        other = read_trace(arguments.against, generator, text_of=text_of)
        return compare_routing(trace, other, segment=arguments.segment, block_tokens=BLOCK_TOKENS)
    return None


def compared_names(arguments: argparse.Namespace) -> tuple[str, str]:
    """What the two sides of the comparison are called; edits hold for the text, and not for what it is held against."""
    edited = " (edited)" if parse_edits(arguments) else ""
    if arguments.contrast:
        x, y = arguments.contrast
        return x + edited, y + edited

    def named(side: str) -> str:
        return shorten(Path(side).name if len(side) < 200 else side, 30)

    return named(arguments.text) + edited, named(arguments.against)


def _compared(found: RoutingComparison, x: str, y: str) -> tuple[Result, list[str]]:
    cells = found.contrast.to_frame()
    # with few runs of one side a test and an interval may disagree: both are asked
    cells = cells[(cells["q"] <= SURPRISING) & ((cells["low"] > 0) | (cells["high"] < 0))]
    result = {
        "tokens": list(found.tokens),
        "same_tokens": found.same_tokens,
        "divergence_bits": found.divergence_bits.tolist(),
        "null_bits": found.null_bits.tolist(),
        "p": found.divergence_p.tolist(),
        "agreement": found.agreement.tolist() if found.same_tokens else None,
        "cells": cells.to_dict("records"),
        "differs": list(found.differs),
    }
    lines = [
        "",
        f"{x} ({found.tokens[0]} tokens) compared with {y} ({found.tokens[1]}) in {found.contrast.clusters[0]} and "
        f"{found.contrast.clusters[1]} runs of some tokens; one text says nothing of its kind, for that compare "
        "several of each in a notebook",
    ]
    for layer, bits in enumerate(found.divergence_bits):
        kept = (
            f", {found.agreement[layer]:.1%} of the experts are the same"
            if found.same_tokens
            else ""
        )
        lines.append(
            f"layer {layer:2d}: divergence {bits:.3f} bits, {found.null_bits[layer]:.3f} by chance "
            f"(p = {found.divergence_p[layer]:.3f}){kept}"
        )
    for cell in cells.head(8).itertuples():
        q = "< 0.001" if cell.q < 0.001 else f"= {cell.q:.3f}"
        lines.append(
            f"expert {cell.expert} of layer {cell.layer}: {cell.difference:+.2f} of the tokens in {x} "
            f"({cell.low:+.2f} to {cell.high:+.2f}), q {q}"
        )
    if len(cells) > 8:
        lines.append(f"and {len(cells) - 8} other cells; --json lists all")
    if cells.empty:
        lines.append(
            f"no expert differs by more than chance (q ≤ {SURPRISING} and an interval without 0)"
        )
    return result, lines


def _changed_reading(
    generator: Generator,
    text: str,
    before: RoutingTrace,
    edits: Sequence[Edit],
    segment: str | None,
) -> tuple[Result, list[str], RoutingTrace]:
    from workbench.generation.prompts import plain_prompt
    from workbench.routing.agreement import agreement

    prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=generator.context)
    if segment is not None and not before.rows(segment).any():
        raise ValueError(
            f"--in {segment}: no token of it is read here; with --index there would be evidence and answer"
        )
    with generator.intervened(edits, prompt=prompt if segment else None, segment=segment):
        after = generator.read(prompt)
    rows = before.rows()
    kept = agreement(before.experts[rows], after.experts[rows]).mean(axis=0)
    shares = ", ".join(f"{share:.1%}" for share in kept)
    return (
        {**_said(edits, segment), "agreement": kept.tolist(), "usage": after.usage().tolist()},
        [
            "",
            f"with {counted(len(edits), 'edit')} the tokens keep, layer by layer, {shares} of their experts",
        ],
        after,
    )


def _changed_answer(
    generator: Generator,
    answer: Answer,
    edits: Sequence[Edit],
    segment: str | None,
    documents: Any,
) -> tuple[Result, list[str], RoutingTrace]:
    from workbench.effects.answers import edit_effect

    found = edit_effect(
        generator, [answer], edits, documents=documents, segment=segment, arms=0
    ).answers[0]
    result = {
        **_said(edits, segment),
        "before": found.before.text,
        "after": found.after.text,
        "likelihood_change": _number(found.likelihood_change),
        "marks_kept": _number(found.marks_kept),
        "overlap": _number(found.overlap),
    }
    lines = [
        "",
        f"answer:        {found.before.text}",
        f"with the edit: {found.after.text}",
        f"the log-probability of the first answer changes by {found.likelihood_change:+.3f} nats",
    ]
    return result, lines, found.after.routing


def _met(trace: RoutingTrace, edits: Sequence[Edit], segment: str | None) -> int:
    """How often the tokens that are meant had chosen one of the experts: what a ban or a drop of them changes."""
    counts = trace.counts(segment)
    places = {
        (layer, edit.expert)
        for edit in edits
        for layer in (range(trace.layers) if edit.layers is None else edit.layers)
    }
    return sum(int(counts[place]) for place in places)


def _said(edits: Sequence[Edit], segment: str | None) -> Result:
    return {"edits": [asdict(edit) for edit in edits], "segment": segment}


def _number(value: float) -> float | None:
    """The number, or None for nan, which is no JSON."""
    return None if math.isnan(value) else value
