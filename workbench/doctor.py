"""What is installed, what this machine has, whether a generator would load, and what would not work with its remedy."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import WorkbenchError

PACKAGES = (
    "torch", "transformers", "sentence-transformers", "bm25s", "numpy", "matplotlib", "jupyterlab", "ipywidgets",
)  # fmt: skip
FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")


@dataclass(slots=True)
class Examination:
    """Findings; ``problems`` are sentences with the remedy, empty when all is well; ``notes`` are none."""

    versions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, Any] = field(default_factory=dict)
    memory_plan: dict[str, Any] | None = None
    self_tests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What ``workbench doctor --json`` prints."""
        return {
            "versions": self.versions,
            "devices": self.devices,
            "memory_plan": self.memory_plan,
            "self_tests": self.self_tests,
            "notes": self.notes,
            "problems": self.problems,
        }

    def __str__(self) -> str:
        lines = [", ".join(f"{name} {version}" for name, version in self.versions.items())]
        lines += [f"{name}: {value}" for name, value in self.devices.items()]
        plan = self.memory_plan
        if plan is not None and plan["fits"]:
            lines.append(f"memory: {plan['sentence']}")
            lines.append(
                f"memory: the largest context that fits is {plan['largest_context']:,} tokens"
            )
        lines += [f"self-test {name}: {value}" for name, value in self.self_tests.items()]
        lines += [f"note: {note}" for note in self.notes]
        for problem in self.problems:
            if plan is not None and plan["alternatives"] and problem.startswith(plan["shortfall"]):
                lines.append(f"PROBLEM: {plan['shortfall']}:")
                lines += [f"  - {one}" for one in plan["alternatives"]]
            else:
                lines.append(f"PROBLEM: {problem}")
        return "\n".join(lines if self.problems else [*lines, "no problem found"])


def examine(
    generator: str = "pocket",
    *,
    context: int | None = None,
    cache: str = "reserved",
    quantization: str | None = None,
    expert_cache: int | None = None,
    card: float | None = None,
) -> Examination:
    """Look at versions, FAISS, devices, the encoder, and plan and probe `generator`; nothing here raises for a finding.

    With `card` the generator is planned for a GPU of so many GB (10**9 bytes) that is not here, and not loaded.

    >>> examine("pocket").problems
    []
    """
    found = Examination()
    _versions(found)
    _devices(found)
    _encoder(found)
    held = {"quantization": quantization, "expert_cache": expert_cache}
    if card is not None:
        held |= {"device": "cuda", "device_bytes": int(card * 10**9)}
    _generator(found, generator, context, cache, held)
    return found


def _versions(found: Examination) -> None:
    found.versions["python"] = platform.python_version()
    for name in PACKAGES:
        try:
            found.versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.problems.append(f"{name} is missing: run make setup")
    present = {name: _version(name) for name in FAISS if _version(name)}
    found.versions.update(present)
    if not present:
        found.problems.append(
            "faiss is missing: install the extra 'cpu' or 'gpu' (make setup FAISS=cpu)"
        )
    if len(present) > 1:
        found.problems.append(
            f"{' and '.join(present)} overwrite each other: uninstall both, then install one"
        )
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found.problems.append(f"Python {platform.python_version()} is outside 3.11–3.13")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices(found: Examination) -> None:
    from workbench.generation.memory import GIB, device_memory
    from workbench.generation.planning import pick_device
    from workbench.retrieval.index_structures import gpu_count

    device = pick_device("auto")
    found.devices["device"] = device
    found.devices["memory_gib"] = round(device_memory(device) / GIB, 1)
    try:
        found.devices["faiss_gpus"] = gpu_count()
    except ImportError:  # told with the versions
        return
    if not found.devices["faiss_gpus"] and any(name in found.versions for name in FAISS[1:]):
        found.notes.append(
            "faiss-gpu is installed and sees no GPU: vectors are compared on the processor"
        )


def _encoder(found: Examination) -> None:
    from workbench.retrieval.encoders import load_encoder

    try:
        found.self_tests["encoder"] = f"{load_encoder().name}, sha256 as published"
    except (WorkbenchError, ImportError) as error:
        found.problems.append(str(error))


def _generator(
    found: Examination, name: str, context: int | None, cache: Any, held: dict[str, Any]
) -> None:
    """Plan the generator; load it for its self-tests only if its weights are here and the plan fits."""
    from workbench.checkpoints.finding import find_checkpoint
    from workbench.generation.loading import load_generator
    from workbench.generation.longrope import rope_status
    from workbench.generation.options import Decoding
    from workbench.generation.planning import is_on_disk, plan_memory

    try:
        decoding = Decoding(cache=cache)
        plan = plan_memory(name, context=context, cache=cache, **held)
        found.memory_plan = plan.to_dict()
        is_here = is_on_disk(find_checkpoint(name))
        if not is_here:
            found.notes.append(
                f"the weights of {plan.model} are not on this disk: planned from {plan.source}, nothing was loaded; "
                "load_generator would download them"
            )
        if not plan.fits:
            found.problems.append(plan.refusal)
        elif is_here and "device_bytes" not in held:
            loaded = load_generator(name, context=context, decoding=decoding, **held)
            found.self_tests["longrope"] = (
                f"{loaded.regime} regime follows the checkpoint's factors; {rope_status(loaded.model).reason}"
            )
            found.self_tests["chat template"] = _control_tokens(loaded)
    except (WorkbenchError, ValueError) as error:
        found.problems.append(str(error))


def _control_tokens(generator: Any) -> str:
    """Feed every control token as text and count the control ids beyond the template's own."""
    from workbench.generation.chat_tokens import chat_token_ids, control_ids

    tokenizer = generator.tokenizer
    control = control_ids(tokenizer)
    names = "".join(tokenizer.added_tokens_decoder[i].content for i in sorted(control))
    clean = chat_token_ids(tokenizer, [("user", "x")])[1]
    hostile = chat_token_ids(tokenizer, [("user", names)])[1]
    extra = sum(i in control for i in hostile) - sum(i in control for i in clean)
    if extra:
        raise WorkbenchError(
            f"{extra} control tokens of the text reached the prompt: do not use this tokenizer"
        )
    return "text cannot become a control token"
