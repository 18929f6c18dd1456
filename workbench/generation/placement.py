"""Where the modules of a model lie: on one device, on all GPUs, or where a map says, host memory and disk included.

transformers and accelerate move what crosses from one device to another; nothing that is computed changes by it.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.checkpoints.cache_places import cache_folder
from workbench.generation.memory import device_memory
from workbench.generation.planning import check_device, pick_device

DeviceMap = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Placement:
    """``main`` is the kind of device that computes, ``device_map`` what transformers takes.

    ``bytes`` is what all places of a map have together; None for a device by name, whose memory the planner asks for.
    """

    main: str
    device_map: str | dict[str, str | int]
    bytes: int | None = None

    @property
    def uses_disk(self) -> bool:
        """Whether some modules are read from disk at every pass."""
        return not isinstance(self.device_map, str) and "disk" in self.device_map.values()


def find_placement(device: str | DeviceMap) -> Placement:
    """Resolve a device by name, or a map of module names to devices; raises ``ValueError`` for one that is not here.

    Modules on "cpu" or "disk" beside those on a GPU are copied to it whenever they compute.

    >>> find_placement({"model.embed_tokens": "cpu", "model.layers.0": "disk"}).main
    'cpu'
    """
    if isinstance(device, str):
        main = pick_device(device)
        return Placement(main, _everywhere(main))
    if not isinstance(device, Mapping) or not device:
        raise ValueError(
            f"device={device!r} must be a name like 'cuda', or a map like {{'model.layers.0': 'cuda:0', …}}"
        )
    places = {f"cuda:{one}" if isinstance(one, int) else str(one) for one in device.values()}
    for place in places - {"disk"}:
        check_device(place)
    main = next((place for place in sorted(places, reverse=True) if place != "disk"), "cpu")
    available = sum(device_memory(place) for place in places - {"disk"})
    if "disk" in places:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        available += shutil.disk_usage(folder).free
    return Placement(main.partition(":")[0], dict(device), available)


def spelled_out(config: Any, placed: Placement) -> Placement:
    """The same with a map that names every module once; raises ``ValueError`` for one that is not for this model.

    >>> from workbench.checkpoints.finding import find_checkpoint, load_config
    >>> config = load_config(find_checkpoint("pocket"))
    >>> spelled_out(config, find_placement({"lm_head": "cpu"}))
    Traceback (most recent call last):
    ValueError: the map gives no device for model; add it, or the name it begins with, '' for all the rest
    """
    import torch
    from transformers import AutoModelForCausalLM

    given = placed.device_map
    if isinstance(given, str) or placed.bytes is None:
        return placed
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    unknown = sorted(given.keys() - dict(model.named_modules()).keys(), key=str)
    if unknown:
        raise ValueError(
            f"the map names {unknown[0]}, which the model has not; it has {', '.join(_names(model))}"
        )
    found = dict(_spelled(model, "", given, None))
    embeddings = found.get("model", found.get("model.embed_tokens"))
    if embeddings == "disk" or (embeddings == "cpu" and placed.main != "cpu"):
        raise ValueError(
            f"model.embed_tokens is placed on {embeddings!r} and computes on {placed.main}, where every pass begins: "
            f"place it there"
        )
    if config.tie_word_embeddings and found["lm_head"] != embeddings:
        raise ValueError("model.embed_tokens and lm_head are one weight here: place both alike")
    return replace(placed, device_map=found)


def _names(model: Any) -> list[str]:
    """The modules that a map may name, those of the first layer standing for all."""
    first = "model.layers.0"
    inner = [f"{first}.{name}" for name, _ in model.get_submodule(first).named_children()]
    return ["lm_head", *(f"model.{n}" for n, _ in model.model.named_children()), first, *inner]


def _spelled(
    module: Any, name: str, given: DeviceMap, place: str | int | None
) -> Iterator[tuple[str, str | int]]:
    place = given.get(name, place)
    within = f"{name}." if name else ""
    if within and not any(one.startswith(within) for one in given):
        if place is None and any(True for _ in module.parameters()):
            raise ValueError(
                f"the map gives no device for {name}; add it, or the name it begins with, '' for all the rest"
            )
        if place is not None:
            yield name, place
        return
    for own, child in module.named_children():
        yield from _spelled(child, within + own, given, place)


def _everywhere(device: str) -> str | dict[str, str | int]:
    import torch

    return "auto" if device == "cuda" and torch.cuda.device_count() > 1 else {"": device}


def parameters_with_values(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and parameters of a model; those that lie elsewhere are fetched one module at a time.

    >>> from workbench.generation.loading import load_generator
    >>> len(list(parameters_with_values(load_generator("pocket").model)))
    79
    """
    from accelerate.utils import align_module_device

    seen: set[int] = set()  # tied ones come once
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(prefix, recurse=False))
        if not any(parameter.is_meta for parameter in own.values()):
            yield from ((n, p) for n, p in own.items() if id(p) not in seen)
            seen.update(id(parameter) for parameter in own.values())
            continue
        with align_module_device(module):
            yield from module.named_parameters(prefix, recurse=False)


class KeptFiles:
    """What is read from disk at every pass: kept until no copy of a model is left, then `close` is called."""

    def __init__(self, close: Callable[[], None]) -> None:
        weakref.finalize(self, close)

    def __deepcopy__(self, _memo: Any) -> KeptFiles:
        return self


def offloaded_weights(model: Any) -> dict[int, Any]:
    """What holds the weights of modules that lie elsewhere, for ``copy.deepcopy`` to share: by id."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    held = (getattr(hook, "weights_map", None) for hook in hooks)
    return {id(one): one for one in held if one is not None}
