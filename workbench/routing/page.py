"""A trace → one HTML page to look at in a browser: usage, text and layers, from a file, without any network.

The page may run its own script and style alone, each named by its sha256 in a Content-Security-Policy. Texts of
documents stand in a JSON block that no text can end; the script (page.js beside this file) shows them as text and
never as HTML. Arrays are base64 in little-endian order; of a long trace only what is visible is drawn.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.markup import counted, escape, table
from workbench.routing.pieces import spelled
from workbench.routing.trace import RoutingTrace

_BODY = """
<div id="view" hidden>
<section aria-labelledby="usage-title"><h2 id="usage-title">Usage</h2>
<p class="controls"><label>Segment <select id="segment"></select></label>
<label>Layer <select id="layer"></select></label> <label>Expert <select id="expert"></select></label></p>
<canvas id="usage" tabindex="0" role="img" aria-describedby="usage-says"></canvas>
<p id="usage-says" class="says" aria-live="polite"></p></section>
<section aria-labelledby="strip-title"><h2 id="strip-title">All tokens, layer by layer</h2>
<canvas id="strip" tabindex="0" role="img" aria-describedby="strip-says"></canvas>
<p id="strip-says" class="says"></p></section>
<section aria-labelledby="text-title"><h2 id="text-title">Text</h2>
<p class="controls"><button id="previous" type="button">Previous</button>
<input id="position" type="range" min="0" step="1" aria-label="First token shown">
<button id="next" type="button">Next</button>
<button id="next-use" type="button" disabled>Next use of the expert</button> <output id="window-says"></output></p>
<div class="reading"><div id="tokens" role="group" aria-label="Tokens with their experts"></div>
<aside id="detail" aria-label="The token"></aside></div>
<p class="says">Below each token its experts in this layer, the first choice first; the tint is that of the first.
Arrow keys go from token to token and from layer to layer.</p></section>
</div>
"""


def trace_page(trace: RoutingTrace, *, title: str, segment: str | None = None) -> str:
    """A whole HTML page of `trace`: what routed, layers × experts by segment, every token with its experts.

    A cell of the usage picks a layer and an expert; the text is tinted by the first expert of that layer, with the
    numbers of all choices, and the tokens of that expert are outlined. Without scripts the page shows the usage as a
    table. It opens at `segment`, None for all of it. 131,072 tokens in 32 layers make a page of 40 MB. The same
    arguments give the same page.

    >>> from workbench.routing.trace import example_trace
    >>> html = trace_page(example_trace(), title="A <valve>")
    >>> "<title>A &lt;valve&gt;</title>" in html, "http:" in html, "https:" in html
    (True, False, False)
    """
    trace.rows(segment)  # an unknown name is an error
    script, style = _beside("page.js"), _beside("page.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    routed = int(trace.routed.sum())
    size = (
        f"{len(trace.token_texts):,} tokens, {routed:,} of them routed · {counted(trace.layers, 'layer')} · "
        f"{counted(trace.n_experts, 'expert')}, {trace.k} a token"
    )
    origin = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in trace.origin.items()
    )
    blocks = "".join(
        f'<script type="text/plain" id="{name}">{_base64(array)}</script>\n'
        for name, array in _arrays(trace).items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n"
        f"<body><main><header><h1>{escape(title)}</h1><p>{size}</p><dl>{origin}</dl></header>\n"
        f"<noscript><p>Without scripts this page shows the usage alone.</p>{_usage_table(trace)}</noscript>"
        f'{_BODY}</main>\n<script type="application/json" id="facts">{_json(_facts(trace, segment))}</script>\n'
        f"{blocks}<script>{script}</script></body></html>\n"
    )


def _beside(name: str) -> str:
    return resources.files("workbench.routing").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _facts(trace: RoutingTrace, segment: str | None) -> dict[str, Any]:
    of = {source.segment: source for source in trace.sources}
    found = [of.get(name) for name in trace.segment_names]
    return {
        "tokens": len(trace.token_texts),
        "layers": trace.layers,
        "k": trace.k,
        "experts": trace.n_experts,
        "texts": spelled(trace.token_texts),
        "segment": segment or "",
        "segments": trace.segment_names,
        "documents": [source and source.document_id for source in found],
        "ranks": [source.rank if source else 0 for source in found],
    }


def _json(facts: dict[str, Any]) -> str:
    """JSON that stays inside its script element: no <, >, & and nothing beyond ASCII."""
    text = json.dumps(facts, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _arrays(trace: RoutingTrace) -> dict[str, NDArray[Any]]:
    """What the script reads, tokens first in each, little-endian; places are characters of a document, -1 for none."""
    frame = trace.to_frame()
    places = frame[["document_start", "document_stop"]].fillna(-1).to_numpy(np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "experts": trace.experts,
        "routed": trace.routed.astype(np.uint8),
        "codes": trace.segments.astype("<i2"),
        "spans": trace.spans.astype("<i4"),
        "places": places.astype("<i4"),
        "logs": frame["log_probability"].to_numpy().astype("<f4"),
    }
    if trace.gate_weights is not None:
        arrays["gates"] = trace.gate_weights.astype("<f2")
    return arrays


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _usage_table(trace: RoutingTrace) -> str:
    if not trace.routed.any():
        return "<p>No token was routed.</p>"
    header = ["layer", *(f"expert {expert}" for expert in range(trace.n_experts))]
    rows = [
        [str(layer), *(f"{share:.3f}" for share in shares)]
        for layer, shares in enumerate(trace.usage())
    ]
    return "<p>Share of routed tokens sent to each expert:</p>" + table(header, rows)
