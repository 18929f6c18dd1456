"""Train the pocket model from nothing: ``python -m workbench.pocket.train --help``.

A warm-up settles the copying heads on random tokens; then generated examples with ever more numbered sentences.
A run can be killed and started again with the same arguments: it goes on from its last checkpoint, on the same data,
and ends as it would have. ``--workers`` makes so many processes share a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.pocket.batches import Batch, pool, warm_up_batch
from workbench.pocket.kernels import ATTENTION, EXPERTS, register_kernels
from workbench.pocket.optimiser import Optimiser
from workbench.pocket.structured import Shape, structured_model
from workbench.store import write_atomic

if TYPE_CHECKING:
    import torch

CHECKPOINT = "checkpoint.safetensors"
CURVE = "learning_curve.csv"
_MEETING = "workers"  # the file by which worker processes find each other
_OPENS = (0.068, 0.14, 0.253, 0.355)  # share of the run at which each next level opens


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run."""

    steps: int = 4400
    seed: int = 11
    workers: int = 1
    batch_tokens: int = 5120  # of each worker
    pool_steps: int = 24  # steps whose data are made together
    warm_up_steps: int = 120
    cooldown: float = 0.4
    adam_rate: float = 2e-3
    muon_rate: float = 4e-3
    first_token_weight: float = 6.0
    prompt_share: float = 0.15
    prompt_weight: float = 0.3
    balance_weight: float = 0.05


@dataclass(slots=True)
class Progress:
    """Where a run stands; saved with each checkpoint. The accuracies are running means."""

    step: int = 0
    tokens: int = 0
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
    """A model in training with its optimiser, data position and learning curve, in `folder`.

    `worker` is the number of this process among the recipe's; only the first one writes. All of them hold the same
    weights, because they step by the mean of their gradients. `makers` processes make the data ahead (0: this one).
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        recipe: Recipe,
        *,
        shape: Shape | None = None,
        device: str = "cpu",
        worker: int = 0,
        makers: int = 0,
    ) -> None:
        import torch

        register_kernels()
        self.folder, self.tokenizer, self.recipe = folder, tokenizer, recipe
        self.device, self.worker, self.makers = device, worker, makers
        shape = shape or Shape(vocabulary=len(tokenizer))
        texts = list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        model: Any = structured_model(shape, texts, seed=recipe.seed)
        model.config._attn_implementation = ATTENTION
        model.config._experts_implementation = EXPERTS if device == "cpu" else "grouped_mm"
        self.optimiser = Optimiser(
            model.to(device), adam_rate=recipe.adam_rate, muon_rate=recipe.muon_rate
        )
        self.model: Any = model.to(torch.bfloat16).train()
        self.optimiser.weights = dict(self.model.named_parameters())
        self.progress = Progress()
        self.curve: list[dict[str, float]] = []
        self.recipes: list[dict[str, Any]] = [{"from_step": 0, **asdict(recipe)}]

    def train(self, *, until: int | None = None, save_every: float = 240.0) -> None:
        """Step to the end of the recipe, or to step `until`, saving every `save_every` seconds and at the end.

        A save that fails on the way (a full disk) leaves the last checkpoint whole and is tried again; the last raises.
        """
        import torch

        begun = time.monotonic() - self.progress.seconds
        saved = time.monotonic()
        for batch in self._batches():
            if self.progress.step in (self.recipe.steps, until):
                break
            torch.manual_seed(
                (self.recipe.seed * 1_000_003 + self.progress.step) * self.recipe.workers
                + self.worker
            )
            losses = step_losses(self.model, batch, self.recipe)
            losses.total.backward()  # type: ignore[no-untyped-call]
            gradients = self.optimiser.gradients()
            seen = self._shared(batch, losses, gradients, time.monotonic() - begun)
            self.optimiser.step(self._rate(), gradients)
            self._advance(seen)
            if self.worker == 0 and time.monotonic() - saved > save_every:
                try:
                    self.save()
                except OSError as error:
                    print(
                        f"the checkpoint could not be written ({error}); going on", file=sys.stderr
                    )
                saved = time.monotonic()
        if self.worker == 0:
            self.save()

    def fraction(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.progress.step / self.recipe.steps

    def save(self) -> None:
        """Write checkpoint and curve; each is replaced whole."""
        from safetensors.torch import save

        tensors = {name: t.contiguous().cpu() for name, t in self.optimiser.tensors().items()}
        state = {
            "progress": asdict(self.progress),
            "recipes": self.recipes,
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
        """Go back to the last checkpoint of the folder; False when there is none.

        A recipe that differs from the checkpoint's holds from here on; the checkpoint remembers both.
        """
        from safetensors import safe_open

        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        known = {field.name for field in fields(Progress)}
        self.progress = Progress(**{k: v for k, v in state["progress"].items() if k in known})
        self.curve, self.recipes = state["curve"], state["recipes"]
        recipe = asdict(self.recipe)
        if {**self.recipes[-1], **recipe} != self.recipes[-1]:
            self.recipes.append({"from_step": self.progress.step, **recipe})
        self.optimiser.restore(tensors, self.progress.step)
        return True

    def _batches(self) -> Iterator[Batch]:
        """The batch of every step, that of this worker."""
        recipe, progress = self.recipe, self.progress
        while progress.step < recipe.warm_up_steps:
            yield warm_up_batch(
                self.tokenizer,
                seed=f"{recipe.seed}:{self.worker}",
                step=progress.step,
                steps=recipe.warm_up_steps,
                batch_tokens=recipe.batch_tokens,
            )
        number, done = divmod(progress.step - recipe.warm_up_steps, recipe.pool_steps)
        for batches in self._pools(number):
            yield from batches[done:]
            done = 0

    def _pools(self, first: int) -> Iterator[list[Batch]]:
        """The pools of this worker from number `first` on, made here or ahead by other processes."""
        recipe = self.recipe

        def options(number: int) -> dict[str, Any]:
            return {
                "seed": f"{recipe.seed}:{self.worker}",
                "number": number,
                "level": level_of(recipe, number),
                "batch_tokens": recipe.batch_tokens,
                "count": recipe.pool_steps,
            }

        if not self.makers:
            for number in itertools.count(first):
                yield pool(self.tokenizer, **options(number))
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.makers, mp_context=spawned) as makers:
            ahead = deque(
                makers.submit(pool, self.tokenizer, **options(first + n))
                for n in range(self.makers + 1)
            )
            try:
                for number in itertools.count(first + len(ahead)):
                    yield ahead.popleft().result()
                    ahead.append(makers.submit(pool, self.tokenizer, **options(number)))
            finally:
                makers.shutdown(wait=False, cancel_futures=True)

    def _rate(self) -> float:
        """Share of the full rates: a warm-up of 60 steps, and a linear cool-down at the end."""
        left = (1 - self.fraction()) / self.recipe.cooldown
        return min(1.0, (self.progress.step + 1) / 60, max(0.02, left))

    def _shared(
        self, batch: Batch, losses: Losses, gradients: dict[str, torch.Tensor], seconds: float
    ) -> dict[str, float]:
        """Put the workers' mean into `gradients`, in place; what the step was like, the same for all workers.

        Tokens are summed, and the clock is the first worker's.
        """
        import torch

        workers = self.recipe.workers
        seen = {
            "tokens": float(batch.real.sum()) * workers,
            "seconds": seconds * workers if self.worker == 0 else 0.0,
            "answer_loss": losses.answer,
            "prompt_loss": losses.prompt,
            "balance": losses.balance,
            "answer_accuracy": losses.answer_accuracy,
            "first_accuracy": losses.first_accuracy,
        }
        if workers == 1:
            return seen
        values = torch.tensor(list(seen.values()))
        whole = torch.cat([values, *(g.flatten() for g in gradients.values())])
        torch.distributed.all_reduce(whole)
        whole /= workers
        sizes = [len(values), *(g.numel() for g in gradients.values())]
        values, *parts = torch.split(whole, sizes)
        for gradient, part in zip(gradients.values(), parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return dict(zip(seen, values.tolist(), strict=True))

    def _advance(self, seen: dict[str, float]) -> None:
        progress, recipe = self.progress, self.recipe
        fresh = progress.step in (0, recipe.warm_up_steps)
        keep = 0.0 if fresh else 0.96
        for name in ("answer_accuracy", "first_accuracy"):
            before = getattr(progress, name)
            setattr(progress, name, before + (1 - keep) * (seen[name] - before))
        progress.seconds = seen["seconds"]
        progress.tokens += round(seen["tokens"])
        progress.step += 1
        if progress.step % 20 == 0:
            row = {
                "step": progress.step,
                "tokens": progress.tokens,
                "minutes": round(progress.seconds / 60, 2),
                "level": level_of(
                    recipe, (progress.step - 1 - recipe.warm_up_steps) // recipe.pool_steps
                ),
                "answer_loss": seen["answer_loss"],
                "prompt_loss": seen["prompt_loss"],
                "balance": seen["balance"],
                "answer_accuracy": progress.answer_accuracy,
                "first_accuracy": progress.first_accuracy,
            }
            self.curve.append(row)
            if self.worker == 0:
                print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)


def level_of(recipe: Recipe, number: int) -> int:
    """The level of pool `number`: by the share of the run at which the pool begins.

    >>> [level_of(Recipe(steps=1000, warm_up_steps=0, pool_steps=10), pool) for pool in (0, 6, 7, 30, 90)]
    [0, 0, 1, 3, 4]
    """
    step = recipe.warm_up_steps + number * recipe.pool_steps
    return sum(step / recipe.steps > share for share in _OPENS)


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
        input_ids=ids[None],
        position_ids=batch.position[None].to(device),
        output_router_logits=True,
        use_cache=False,
        layout=batch.layout,
    )
    hidden, labels, answers = out.last_hidden_state[0, :-1], ids[1:], target[1:]
    follows = real[1:] & real[:-1]
    drawn = torch.rand(answers.shape, device=device) < recipe.prompt_share
    prompt = follows & ~answers & ~begins_branch(batch).to(device)[1:] & drawn
    logits = model.lm_head(torch.cat([hidden[answers], hidden[prompt]])).float()
    losses = cross_entropy(logits, torch.cat([labels[answers], labels[prompt]]), reduction="none")
    count = int(answers.sum())
    is_first = (answers & ~target[:-1])[answers]
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


def begins_branch(batch: Batch) -> torch.Tensor:
    """Where a row or branch begins in the flat batch: the token before it is not its context. Bool [tokens]."""
    import torch

    begins = torch.zeros(len(batch.ids), dtype=torch.bool)
    start = 0
    for extent in batch.layout.extents:
        for length in (extent.shared, *extent.lengths):
            begins[start : start + 1] = True
            start += length
    return begins


def _balance(
    router_logits: tuple[torch.Tensor, ...], real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load balance and squared log-sum-exp of the router logits, means over layers, padding left out."""
    import torch

    balance = size = torch.zeros((), device=real.device)
    for layer in router_logits:
        logits = layer.float().reshape(real.numel(), -1)[real]  # [real tokens, experts]
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

    from workbench.pocket.tokenizer import train_tokenizer

    parser = argparse.ArgumentParser(prog="python -m workbench.pocket.train", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the tokenizer, checkpoints and the curve",
    )
    parser.add_argument("--weights", type=Path, help="folder to export the model to at the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--makers", type=int, default=0, help="processes that make data ahead, for a fast GPU"
    )
    parser.add_argument("--until", type=int, help="stop after this step (to continue later)")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}"
        )
    given = parser.parse_args(arguments)
    if given.workers > 1 and given.device != "cpu":
        parser.error("--workers shares the work among processes of one CPU; a GPU takes one")
    given.out.mkdir(parents=True, exist_ok=True)
    if not (given.out / "tokenizer").exists():
        train_tokenizer().save_pretrained(given.out / "tokenizer")
    if given.workers == 1:
        _work(0, given)
        return
    (given.out / _MEETING).unlink(missing_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers are the threads
    torch.multiprocessing.spawn(  # type: ignore[attr-defined,no-untyped-call]
        _work, args=(given,), nprocs=given.workers
    )


def _work(worker: int, given: argparse.Namespace) -> None:
    """What one worker does from start to end."""
    import torch
    from transformers import AutoTokenizer

    from workbench.pocket.export import export_weights

    recipe = Recipe(**{name: getattr(given, name) for name in asdict(Recipe())})
    if recipe.workers > 1:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # how the end of the parent is told
        meeting = (given.out / _MEETING).resolve().as_uri()
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=worker, world_size=recipe.workers
        )
    tokenizer = AutoTokenizer.from_pretrained(given.out / "tokenizer")
    run = Run(given.out, tokenizer, recipe, device=given.device, worker=worker, makers=given.makers)
    resumed = run.resume()
    if worker == 0:
        print(
            f"resumed at step {run.progress.step}" if resumed else "new run",
            asdict(recipe),
            flush=True,
        )
    run.train(until=given.until)
    if worker == 0 and given.weights and run.fraction() >= 1:
        export_weights(given.out / CHECKPOINT, given.out / "tokenizer", given.weights)
    if recipe.workers > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
