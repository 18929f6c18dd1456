"""Make docs/gallery.md and its pictures from the pocket model on corpora/: python docs/make_gallery.py (two minutes).

To add a picture, add an `Entry`; what its code needs beyond the names of `prepare` is computed there.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import workbench as wb
from workbench.demo import CORPORA, judge, read_questions
from workbench.effects.answers import edit_effect
from workbench.effects.card import expert_card
from workbench.effects.cases import cases_of
from workbench.effects.contexts import contrast_contexts
from workbench.effects.dial import check_dial, learn_dial
from workbench.effects.scan import context_use
from workbench.plots.figures import png_bytes
from workbench.routing.contrasts import contrast
from workbench.routing.drift import position_drift
from workbench.routing.groups import group_usage
from workbench.routing.intervene import Edit
from workbench.routing.margins import fragile
from workbench.routing.pairs import coactivation, transitions
from workbench.routing.specialization import specialization
from workbench.routing.statistics import effective_experts_by_segment

PAGE = Path(__file__).parent / "gallery.md"
IMAGES = Path(__file__).parent / "images" / "gallery"
DPI = 80


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: the room of its function, the line that makes it, and a sentence on what to read off."""

    room: str
    code: str
    reading: str

    @property
    def function(self) -> str:
        """The name of the function."""
        return self.code.split("(")[0]


ENTRIES = [
    Entry(
        "context",
        "plot_context(answer)",
        "Which sentences the model weighed for its answer, and how much likelier the one it chose was.",
    ),
    Entry(
        "routing",
        "plot_expert_usage(trace)",
        "Which experts each layer used for the whole prompt and its answer; what is brighter than the mark on the "
        "colour bar was used more than the uniform share.",
    ),
    Entry(
        "routing",
        "plot_segment_usage(trace, layer=4)",
        "Whether one layer reads the question, reads the evidence and writes the answer with different experts.",
    ),
    Entry(
        "differences",
        'plot_usage_versus_uniform(trace, segment="answer")',
        "Which experts the answer used more or less than the uniform share, and which it never chose.",
    ),
    Entry(
        "differences",
        'plot_usage_difference(code_and_prose, x="code and tables", y="prose")',
        "Which experts code uses more than prose does; only hatched cells are more than the difference of documents.",
    ),
    Entry(
        "balance",
        "plot_balance(segments)",
        "How many experts do the work in each layer; short segments have wide intervals.",
    ),
    Entry(
        "conditions",
        "plot_agreement(precisions)",
        "Where weights in fewer bits move the router: how many of their experts the tokens of the same texts keep.",
    ),
    Entry(
        "tokens",
        "plot_token_experts(trace, layer=4, start=len(trace.experts) - 60)",
        "Which words of the end of the prompt and of the answer went to which experts.",
    ),
    Entry(
        "layers",
        "plot_token_layers(trace, start=len(trace.experts) - 120)",
        "Where along the text each layer changes its expert, and where it keeps one for a whole segment.",
    ),
    Entry(
        "pairs",
        "plot_coactivation(met, layer=3)",
        "Which experts are chosen for the same token more often than if the choices were independent.",
    ),
    Entry(
        "pairs",
        "plot_transitions(followed, layer=2)",
        "Where tokens of an expert go in the next layer; a bright cell is a path that many take.",
    ),
    Entry(
        "groups",
        "plot_specialization(nulls)",
        "Whether code, other languages and English prose differ in their experts more than documents or words do.",
    ),
    Entry(
        "groups",
        "plot_group_usage(\n    by_group.usage[:, 4], names=names, uniform=2 / 16,\n"
        "    low=by_group.low[:, 4], high=by_group.high[:, 4],\n)",
        "Which experts of layer 4 make that difference; the whiskers are what the words alone would give.",
    ),
    Entry(
        "positions",
        "plot_drift(drift)",
        "Whether a document's end uses other experts than its beginning, beyond what shuffled blocks would show.",
    ),
    Entry(
        "positions",
        "plot_fragility(is_fragile)",
        "Where choices hang by a thread: another machine or precision may choose another expert there.",
    ),
    Entry(
        "effects",
        "plot_expert_effects(use.with_evidence)",
        "Which experts the answers need: how much less likely they are when one expert is taken away.",
    ),
    Entry(
        "effects",
        "plot_context_use(use)",
        "Which experts turn evidence into answers: without them, less of what the evidence adds is left.",
    ),
    Entry(
        "changes",
        "plot_answer_change(effect)",
        "Whether taking these experts away changes answers more than taking away random ones of the same load does.",
    ),
    Entry(
        "changes",
        "plot_dial(dial_test)",
        "Whether biasing experts makes answers likelier that were not used to choose them, and random ones do not.",
    ),
    Entry(
        "changes",
        "plot_contexts(contexts)",
        "How many of the answer's experts change when evidence is missing, shuffled or of another question.",
    ),
    Entry(
        "card",
        "plot_expert_card(card)",
        "What the expert that answers need most reads, where, and together with whom.",
    ),
]


def prepare() -> dict[str, Any]:
    """Every name that the code of an entry may use."""
    corpus = wb.read_corpus(CORPORA)
    generator = wb.load_generator("pocket")
    retriever = wb.build_retriever(corpus)
    truths = read_questions(CORPORA / "questions.jsonl")
    judged = (judge(truth, retriever, generator) for truth in truths if truth["answerable"])
    answer = next(j.answer for j in judged if j.evidence_quoted)
    trace = answer.routing
    segments = effective_experts_by_segment(trace)

    # the beginning of every document, read with the router's logits
    prompts = [
        wb.plain_prompt(document.text[:3500], tokenizer=generator.tokenizer, budget_tokens=4000)
        for document in corpus
    ]
    traces = [generator.read(prompt, capture="logits") for prompt in prompts]
    experts = np.concatenate([one.experts[one.rows()] for one in traces])
    tokens = np.concatenate([one.token_ids[one.rows()] for one in traces])
    document = np.repeat(np.arange(len(traces)), [one.rows().sum() for one in traces])
    met = coactivation(experts, n_experts=16)
    followed = transitions(experts, n_experts=16)

    # the same texts, weights held otherwise
    held = {"bfloat16": {"dtype": "bfloat16"}, "8bit": {}, "4bit": {}}
    precisions = {}
    for name, options in held.items():
        other = wb.load_generator("pocket", **(options or {"quantization": name}))
        again = [other.read(prompt) for prompt in prompts]
        precisions[name] = wb.compare_routing(traces, again, segment="question", permutations=100)

    # three groups of documents
    names = ["code and tables", "other languages", "English prose"]
    kinds = [0 if d.language is None else 2 if d.language == "en" else 1 for d in corpus]
    group = np.array(kinds)[document]
    code_and_prose = contrast(
        experts[group != 1], group[group != 1] == 0, document[group != 1], n_experts=16
    )
    nulls = {
        "documents shuffled": specialization(
            experts, group, exchangeable=document, n_experts=16, whole=True
        ),
        "tokens of one word shuffled": specialization(
            experts, group, exchangeable=tokens, n_experts=16, whole=False
        ),
    }
    by_group = group_usage(
        experts, group, n_groups=3, n_experts=16, token_ids=tokens, permutations=100
    )

    # the document of most tokens
    longest = max(traces, key=lambda one: one.rows().sum())
    is_fragile = fragile(longest.router_logits[longest.rows()])
    read = longest.experts[longest.rows()]
    drift = position_drift(read, np.arange(len(read)), n_experts=16)

    # what experts do for answers: chosen on twelve, the dial tried on five others
    asked = [truth["question"] for truth in truths if truth["answerable"]][::5]
    answers = [wb.ask(one, k=1, retriever=retriever, generator=generator) for one in asked]
    answers = [one for one in answers if not one.abstained][:17]
    cases = cases_of(answers, generator=generator)
    use = context_use(generator, cases[:12])
    dial = learn_dial(generator, cases[:12], use)
    dial_test = check_dial(generator, dial, cases[12:], arms=5)
    edits = [Edit("ban", place.expert, (place.layer,)) for place in dial.experts[:3]]
    effect = edit_effect(generator, answers[:5], edits, documents=retriever.documents, arms=4)
    contexts = contrast_contexts(answers[::3], generator=generator)
    scan = use.with_evidence
    most = np.unravel_index(scan.mean_effect.argmax(), scan.mean_effect.shape)
    card = expert_card(
        [one.routing for one in answers], layer=int(most[0]), expert=int(most[1]), scan=scan
    )
    return locals()


def main() -> None:
    """Draw every entry and write the page."""
    names = prepare()
    IMAGES.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Gallery\n",
        "Every picture that workbench draws of an answer and its routing, made by `docs/make_gallery.py` from the "
        "embedded pocket model (5 layers, 16 experts, 2 a token) on `corpora/`. Layer 0 is at the top; what colour "
        "says is also said by a number, a hatch or a marker. `trace` is `answer.routing`; the last section says what "
        "the other names are.\n",
    ]
    for entry in ENTRIES:
        module = f"workbench.plots.{entry.room}"
        function = getattr(importlib.import_module(module), entry.function)
        ax = eval(entry.code, {**names, entry.function: function})
        (IMAGES / f"{entry.function}.png").write_bytes(png_bytes(ax, dpi=DPI))
        parts.append(
            f"## {entry.function}\n\n{entry.reading}\n\n"
            f"```python\nfrom {module} import {entry.function}\n\n{entry.code}\n```\n\n"
            f"![{entry.reading}](images/gallery/{entry.function}.png)\n"
        )
    source = inspect.getsource(prepare)
    parts.append(f"## The names\n\n```python\n{source}```\n")
    PAGE.write_text("\n".join(parts), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
