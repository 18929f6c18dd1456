"""Train the pocket model from nothing: ``python -m workbench.pocket.train --help``.

A warm-up settles the copying heads on random tokens; then generated examples with ever more numbered sentences.
A run can be killed and started again with the same arguments: it goes on from its last checkpoint, on the same data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.pocket.batches import LEVELS, Batch, pool, warm_up_batch
from workbench.pocket.kernels import ATTENTION, EXPERTS, register_kernels
from workbench.pocket.optimiser import Optimiser
from workbench.pocket.structured import Shape, structured_model
from workbench.store import write_atomic

if TYPE_CHECKING:
    import torch

CHECKPOINT = "checkpoint.safetensors"
CURVE = "learning_curve.csv"
_ENOUGH = (0.80, 0.76, 0.74, 0.72, 0.70)  # first-token accuracy that opens the next level
_AT_LATEST = (0.16, 0.24, 0.45, 0.60, 0.75)  # share of the run at which it opens in any case


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run; `minutes` also ends it by the clock (0: by steps alone, and reproducible)."""

    steps: int = 2000
    minutes: float = 0.0
    seed: int = 11
    batch_tokens: int = 4096
    warm_up_steps: int = 120
    cooldown: float = 0.3
    adam_rate: float = 2e-3
    muon_rate: float = 4e-3
    first_token_weight: float = 6.0
    prompt_share: float = 0.15
    prompt_weight: float = 0.3
    balance_weight: float = 0.08


@dataclass(slots=True)
class Progress:
    """Where a run stands; saved with each checkpoint."""

    step: int = 0
    tokens: int = 0
    level: int = 0
    pool: int = 0
    pool_level: int = 0
    batch: int = 0
    since_level: int = 0
    seconds: float = 0.0
    answer_accuracy: float = 0.0
    first_accuracy: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """The loss to descend, and what is worth plotting."""

    total: torch.Tensor
    answer: float
    prompt: float
    balance: float
    answer_accuracy: float
    first_accuracy: float


class Run:
    """A model in training with its optimiser, data position and learning curve, in `folder`."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        recipe: Recipe,
        *,
        shape: Shape | None = None,
        device: str = "cpu",
    ) -> None:
        import torch

        register_kernels()
        self.folder, self.tokenizer, self.recipe, self.device = folder, tokenizer, recipe, device
        shape = shape or Shape(vocabulary=len(tokenizer))
        texts = list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        model: Any = structured_model(shape, texts, seed=recipe.seed)
        model.config._attn_implementation = ATTENTION
        model.config._experts_implementation = EXPERTS
        self.optimiser = Optimiser(
            model.to(device), adam_rate=recipe.adam_rate, muon_rate=recipe.muon_rate
        )
        self.model: Any = model.to(torch.bfloat16).train()
        self.optimiser.weights = dict(self.model.named_parameters())
        self.progress = Progress()
        self.curve: list[dict[str, float]] = []
        torch.manual_seed(recipe.seed)

    def train(
        self, *, until: int | None = None, share: float = 1.0, save_every: float = 240.0
    ) -> None:
        """Step to a `share` of the recipe (or to step `until`), saving every `save_every` seconds and at the end."""
        begun = time.monotonic() - self.progress.seconds
        saved = time.monotonic()
        for batch in self._batches():
            if self.fraction() >= share or self.progress.step == until:
                break
            losses = step_losses(self.model, batch, self.recipe)
            losses.total.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step(self._rate())
            self.progress.seconds = time.monotonic() - begun
            self._advance(batch, losses)
            if time.monotonic() - saved > save_every:
                self.save()
                saved = time.monotonic()
        self.save()

    def fraction(self) -> float:
        """How much of the run is done, 0 to 1, by steps or by the clock, whichever is further."""
        by_clock = self.progress.seconds / 60 / self.recipe.minutes if self.recipe.minutes else 0.0
        return max(self.progress.step / self.recipe.steps, by_clock)

    def save(self) -> None:
        """Write checkpoint and curve; each is replaced whole."""
        import torch
        from safetensors.torch import save

        tensors = {name: t.contiguous().cpu() for name, t in self.optimiser.tensors().items()}
        tensors["rng"] = torch.get_rng_state()
        state = {
            "progress": asdict(self.progress),
            "recipe": asdict(self.recipe),
            "curve": self.curve,
        }
        write_atomic(self.folder / CHECKPOINT, save(tensors, metadata={"state": json.dumps(state)}))
        if self.curve:
            lines = [
                ",".join(self.curve[0]),
                *(",".join(f"{v:g}" for v in row.values()) for row in self.curve),
            ]
            write_atomic(self.folder / CURVE, ("\n".join(lines) + "\n").encode())

    def resume(self) -> bool:
        """Go back to the last checkpoint of the folder; False when there is none."""
        import torch
        from safetensors import safe_open

        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.progress = Progress(**state["progress"])
        self.curve = state["curve"]
        self.optimiser.restore(tensors, self.progress.step)
        torch.set_rng_state(tensors["rng"])
        return True

    def _batches(self) -> Iterator[Batch]:
        recipe, progress = self.recipe, self.progress
        while progress.step < recipe.warm_up_steps:
            yield warm_up_batch(
                self.tokenizer,
                seed=recipe.seed,
                step=progress.step,
                steps=recipe.warm_up_steps,
                batch_tokens=recipe.batch_tokens,
            )
        while True:
            batches = pool(
                self.tokenizer,
                seed=recipe.seed,
                number=progress.pool,
                level=progress.pool_level,
                batch_tokens=recipe.batch_tokens,
            )
            while progress.batch < len(batches):
                yield batches[progress.batch]
            progress.pool, progress.batch, progress.pool_level = (
                progress.pool + 1,
                0,
                progress.level,
            )

    def _rate(self) -> float:
        """Share of the full rates: a warm-up of 60 steps, and a linear cool-down at the end."""
        left = (1 - self.fraction()) / self.recipe.cooldown
        return min(1.0, (self.progress.step + 1) / 60, max(0.02, left))

    def _advance(self, batch: Batch, losses: Losses) -> None:
        progress, recipe = self.progress, self.recipe
        fresh = progress.step in (0, recipe.warm_up_steps)
        keep = 0.0 if fresh else 0.96
        progress.answer_accuracy += (1 - keep) * (losses.answer_accuracy - progress.answer_accuracy)
        progress.first_accuracy += (1 - keep) * (losses.first_accuracy - progress.first_accuracy)
        progress.tokens += int(batch.real.sum())
        progress.batch += progress.step >= recipe.warm_up_steps
        progress.step += 1
        progress.since_level += 1
        if progress.step > recipe.warm_up_steps and progress.level < len(LEVELS) - 1:
            learned = (
                progress.since_level > 40 and progress.first_accuracy > _ENOUGH[progress.level]
            )
            if learned or self.fraction() > _AT_LATEST[progress.level]:
                progress.level, progress.since_level = progress.level + 1, 0
        if progress.step % 20 == 0:
            self.curve.append(
                {
                    "step": progress.step,
                    "tokens": progress.tokens,
                    "minutes": round(progress.seconds / 60, 2),
                    "units": LEVELS[progress.level],
                    "answer_loss": losses.answer,
                    "prompt_loss": losses.prompt,
                    "balance": losses.balance,
                    "answer_accuracy": progress.answer_accuracy,
                    "first_accuracy": progress.first_accuracy,
                }
            )
            print(" ".join(f"{k} {v:.4g}" for k, v in self.curve[-1].items()), flush=True)


def step_losses(model: Any, batch: Batch, recipe: Recipe) -> Losses:
    """Cross entropy of the answers and of a share of the prompt's tokens, and the balance of the experts.

    The first token of an answer, the choice, weighs more. Balance is 1 when every expert gets the same load
    (Switch Transformers, arXiv:2101.03961).
    """
    import torch
    from torch.nn.functional import cross_entropy

    device = model.device
    ids, target, real = batch.ids.to(device), batch.target.to(device), batch.real.to(device)
    out = model.model(
        input_ids=ids,
        position_ids=batch.position.to(device),
        attention_mask=batch.mask.to(device),
        output_router_logits=True,
        use_cache=False,
    )
    hidden, labels, answers = out.last_hidden_state[:, :-1], ids[:, 1:], target[:, 1:]
    prompt = (
        real[:, 1:] & ~answers & (torch.rand(answers.shape, device=device) < recipe.prompt_share)
    )
    logits = model.lm_head(torch.cat([hidden[answers], hidden[prompt]])).float()
    losses = cross_entropy(logits, torch.cat([labels[answers], labels[prompt]]), reduction="none")
    count = int(answers.sum())
    is_first = (answers & ~target[:, :-1])[answers]
    weight = 1.0 + (recipe.first_token_weight - 1) * is_first.float()
    answer = (losses[:count] * weight).sum() / weight.sum()
    said = losses[count:].mean() if len(losses) > count else losses.sum() * 0
    balance, size = _balance(out.router_logits, real)
    right = (logits[:count].argmax(-1) == labels[answers]).float()
    total = answer + recipe.prompt_weight * said + recipe.balance_weight * balance + 1e-4 * size
    return Losses(
        total,
        float(answer.detach()),
        float(said.detach()),
        float(balance.detach()),
        float(right.mean()),
        float(right[is_first].mean()) if bool(is_first.any()) else 0.0,
    )


def _balance(
    router_logits: tuple[torch.Tensor, ...], real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load balance and squared log-sum-exp of the router logits, means over layers, padding left out."""
    import torch

    balance = size = torch.zeros((), device=real.device)
    for layer in router_logits:
        logits = layer.float().reshape(real.numel(), -1)[real.reshape(-1)]  # [real tokens, experts]
        experts = logits.shape[1]
        load = torch.bincount(logits.topk(2, -1).indices.reshape(-1), minlength=experts) / (
            2 * len(logits)
        )
        balance = balance + experts * (load * logits.softmax(-1).mean(0)).sum() / len(router_logits)
        size = size + (logits.logsumexp(-1) ** 2).mean() / len(router_logits)
    return balance, size


def main(arguments: list[str] | None = None) -> None:
    """Command line of the trainer."""
    import torch

    from workbench.pocket.export import export_weights
    from workbench.pocket.tokenizer import train_tokenizer

    parser = argparse.ArgumentParser(prog="python -m workbench.pocket.train", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the tokenizer, checkpoints and the curve",
    )
    parser.add_argument(
        "--weights", type=Path, help="folder to export the model to, at half time and at the end"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--until", type=int, help="stop after this step (to continue later)")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}"
        )
    given = parser.parse_args(arguments)
    recipe = Recipe(**{name: getattr(given, name) for name in asdict(Recipe())})
    folder: Path = given.out
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer").exists():
        train_tokenizer().save_pretrained(folder / "tokenizer")
    from transformers import AutoTokenizer

    run = Run(
        folder, AutoTokenizer.from_pretrained(folder / "tokenizer"), recipe, device=given.device
    )
    print("resumed at step", run.progress.step) if run.resume() else print(
        "new run", asdict(recipe), flush=True
    )
    for share in (0.5, 1.0):
        run.train(until=given.until, share=share)
        if given.weights and run.fraction() >= share:
            export_weights(folder / CHECKPOINT, folder / "tokenizer", given.weights)


if __name__ == "__main__":
    main()
