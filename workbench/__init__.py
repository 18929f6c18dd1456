"""A research workbench that shows where an answer comes from: the passages, the exact characters, and the experts.

Importing it loads no heavy library; every public name is fetched from its room at first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "read_corpus": "workbench.corpus.readers",
    "read_document": "workbench.corpus.readers",
    "Document": "workbench.corpus.documents",
    "build_retriever": "workbench.retrieval.retrievers",
    "open_retriever": "workbench.retrieval.retrievers",
    "SearchOptions": "workbench.retrieval.retrievers",
    "update_index": "workbench.retrieval.building",
    "load_reranker": "workbench.retrieval.rerank",
    "load_encoder": "workbench.retrieval.encoders",
    "load_generator": "workbench.generation.loading",
    "Sampling": "workbench.generation.options",
    "Decoding": "workbench.generation.options",
    "plain_prompt": "workbench.generation.prompts",
    "chat_prompt": "workbench.generation.prompts",
    "plan_memory": "workbench.generation.planning",
    "load_trace": "workbench.routing.trace",
    "usage_entropy": "workbench.routing.statistics",
    "compare_routing": "workbench.routing.compare",
    "Edit": "workbench.routing.intervene",
    "scan_experts": "workbench.effects.scan",
    "ask": "workbench.answer",
    "summarize": "workbench.summary",
    "plan_summary": "workbench.summary",
    "plot_expert_usage": "workbench.plots.routing",
    "plot_segment_usage": "workbench.plots.routing",
    "plot_context": "workbench.plots.context",
    "AskView": "workbench.widgets.ask",
    "CancelToken": "workbench.cancel",
}

_ELSEWHERE = {
    "expert_card": "workbench.effects.card",
    "cases_of": "workbench.effects.cases",
    "context_use": "workbench.effects.scan",
    "edit_effect": "workbench.effects.answers",
    "contrast_contexts": "workbench.effects.contexts",
    "learn_dial": "workbench.effects.dial",
    "export_trace": "workbench.routing.export",
    "routing_fingerprint": "workbench.generation.fingerprint",
    "plot_expert_card": "workbench.plots.card",
    "plot_expert_effects": "workbench.plots.effects",
}  # what is asked for here and stands in a room of its own

__all__ = [*_ROOMS, "__version__"]  # names are strings from the table above


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        raise AttributeError(f"{name} is in its own room: from {_ELSEWHERE[name]} import {name}")
    if name not in _ROOMS:
        raise AttributeError(
            f"module 'workbench' has no attribute {name!r}; there are {', '.join(sorted(_ROOMS))}"
        )
    value = getattr(importlib.import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from workbench.answer import ask as ask
    from workbench.cancel import CancelToken as CancelToken
    from workbench.corpus.documents import Document as Document
    from workbench.corpus.readers import read_corpus as read_corpus
    from workbench.corpus.readers import read_document as read_document
    from workbench.effects.scan import scan_experts as scan_experts
    from workbench.generation.loading import load_generator as load_generator
    from workbench.generation.options import Decoding as Decoding
    from workbench.generation.options import Sampling as Sampling
    from workbench.generation.planning import plan_memory as plan_memory
    from workbench.generation.prompts import chat_prompt as chat_prompt
    from workbench.generation.prompts import plain_prompt as plain_prompt
    from workbench.plots.context import plot_context as plot_context
    from workbench.plots.routing import plot_expert_usage as plot_expert_usage
    from workbench.plots.routing import plot_segment_usage as plot_segment_usage
    from workbench.retrieval.building import update_index as update_index
    from workbench.retrieval.encoders import load_encoder as load_encoder
    from workbench.retrieval.rerank import load_reranker as load_reranker
    from workbench.retrieval.retrievers import SearchOptions as SearchOptions
    from workbench.retrieval.retrievers import build_retriever as build_retriever
    from workbench.retrieval.retrievers import open_retriever as open_retriever
    from workbench.routing.compare import compare_routing as compare_routing
    from workbench.routing.intervene import Edit as Edit
    from workbench.routing.statistics import usage_entropy as usage_entropy
    from workbench.routing.trace import load_trace as load_trace
    from workbench.summary import plan_summary as plan_summary
    from workbench.summary import summarize as summarize
    from workbench.widgets.ask import AskView as AskView
