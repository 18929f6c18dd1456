"""How an answer is decoded: what is drawn (``Sampling``) and how it is computed (``Decoding``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from workbench.cancel import CancelToken
from workbench.generation.memory import KV

# Whether routing is recorded; beside it the router logits, the norms of what each expert contributes, or both
Capture = bool | Literal["logits", "contributions", "all"]
CacheKind = Literal["reserved", "static", "int8", "fp8", "offloaded", "none"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How ordinary decoding chooses: greedy at temperature 0, else by `seed`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        is_right = self.temperature == 0 or 1e-6 <= self.temperature < float("inf")
        if not is_right or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature={self.temperature} must be 0 or at least 1e-6 and top_p={self.top_p} in (0, 1]"
            )
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed={self.seed} must be between 0 and 2**63 - 1")


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are computed. In float32 every choice gives the same tokens, except a cache in 8 bits.

    ``cache``: "reserved" fills room that was set aside once; "static" is transformers' static cache; "int8" keeps keys
    and values in 8 bits, half the memory of 16 for a small error ("fp8" likewise, for a larger one); "offloaded" keeps
    all layers but the current one and the next in host memory (GPU only); "none" computes every token anew at each
    step, as an oracle.

    ``prefill_tokens`` are fed at a time
    while a prompt is read, None for the device's default. ``prompt_lookup_tokens`` above 0 lets greedy decoding check
    that many tokens copied from the prompt in one pass (Saxena 2023, "Prompt Lookup Decoding"). ``reuse_prefix``
    False computes the whole prompt even if its beginning is in the prefix cache.

    >>> Decoding(cache="int8").keeps_prefixes, Decoding(cache="static").keeps_prefixes
    (True, False)
    """

    cache: CacheKind = "reserved"
    prefill_tokens: int | None = None
    prompt_lookup_tokens: int = 0
    reuse_prefix: bool = True

    def __post_init__(self) -> None:
        if self.cache not in get_args(CacheKind):
            raise ValueError(f"cache={self.cache!r} is none of {', '.join(get_args(CacheKind))}")
        if self.prefill_tokens is not None and self.prefill_tokens < 1:
            raise ValueError(f"prefill_tokens={self.prefill_tokens} must be at least 1")
        if self.prompt_lookup_tokens < 0:
            raise ValueError(f"prompt_lookup_tokens={self.prompt_lookup_tokens} must be at least 0")
        if self.prompt_lookup_tokens and self.cache in ("static", "none"):
            raise ValueError(
                f"prompt lookup takes rejected tokens back, which cache={self.cache!r} cannot: use 'reserved'"
            )

    @property
    def kv(self) -> KV:
        """What the memory plan counts for keys and values."""
        return self.cache if self.cache in ("int8", "fp8", "offloaded") else "model"

    @property
    def keeps_prefixes(self) -> bool:
        """Whether the cache can be cut back, and so kept for the next prompt."""
        return self.reuse_prefix and self.cache in ("reserved", "int8", "fp8", "offloaded")


GREEDY = Sampling()
EXACT = Decoding()


@dataclass(frozen=True, slots=True)
class Request:
    """All that one call of a generator asks for beside its prompts."""

    max_new_tokens: int
    sampling: Sampling = GREEDY
    decoding: Decoding = EXACT
    stop: Sequence[str] = ()
    cancel: CancelToken | None = None
    capture: Capture = True

    def __post_init__(self) -> None:
        if self.capture not in (True, False, "logits", "contributions", "all"):
            raise ValueError(
                f"capture={self.capture!r} is not known; use True, False, 'logits', 'contributions' or 'all'"
            )
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop={self.stop!r} must be a list of strings that are not empty")
        if not isinstance(self.decoding, Decoding):
            raise ValueError(
                f"decoding={self.decoding!r} must be a Decoding, like Decoding(cache='int8')"
            )
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 0")
        if self.sampling.temperature > 0 and self.decoding.prompt_lookup_tokens:
            raise ValueError(
                "prompt lookup compares guesses with the likeliest token: set temperature=0 or prompt_lookup_tokens=0"
            )

    @property
    def has_logits(self) -> bool:
        """Whether the router logits are recorded."""
        return self.capture in ("logits", "all")

    @property
    def has_contributions(self) -> bool:
        """Whether the norms of what each expert contributes are recorded."""
        return self.capture in ("contributions", "all")
