from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from workbench.pocket import train  # noqa: E402 (after importorskip)
from workbench.pocket.structured import Shape  # noqa: E402 (after importorskip)
from workbench.pocket.train import CHECKPOINT, Recipe, Run, step_losses  # noqa: E402

RECIPE = Recipe(steps=12, batch_tokens=1200, warm_up_steps=3, pool_steps=2)


def _shape(tokenizer: Any) -> Shape:
    return Shape(
        vocabulary=len(tokenizer), dim=32, layers=2, heads=4, key_value_heads=2, feed_forward=16
    )


def _run(folder: Path, tokenizer: Any, recipe: Recipe = RECIPE, worker: int = 0) -> Run:
    return Run(folder, tokenizer, recipe, shape=_shape(tokenizer), worker=worker)


def test_run_resumed_after_a_kill_ends_as_the_uninterrupted_one(  # type: ignore[no-untyped-def]
    small_tokenizer, tmp_path: Path
) -> None:
    whole = _run(tmp_path / "whole", small_tokenizer)
    whole.train(until=6)
    _run(tmp_path / "cut", small_tokenizer).train(until=4)
    torch.rand(7)  # what another process would leave behind
    resumed = _run(tmp_path / "cut", small_tokenizer)
    assert resumed.resume()
    resumed.train(until=6)
    assert resumed.progress.step == whole.progress.step == 6
    assert resumed.progress.tokens == whole.progress.tokens
    for name, tensor in whole.optimiser.tensors().items():
        assert torch.equal(tensor, resumed.optimiser.tensors()[name]), name


def test_checkpoint_remembers_every_recipe_it_was_trained_with(  # type: ignore[no-untyped-def]
    small_tokenizer, tmp_path: Path
) -> None:
    _run(tmp_path, small_tokenizer).train(until=1)
    same = _run(tmp_path, small_tokenizer)
    assert same.resume()
    assert [recipe["from_step"] for recipe in same.recipes] == [0]
    other = _run(tmp_path, small_tokenizer, replace(RECIPE, balance_weight=0.5))
    assert other.resume()
    assert [(r["from_step"], r["balance_weight"]) for r in other.recipes] == [(0, 0.05), (1, 0.5)]


@pytest.mark.slow  # reads the Python reference twice
def test_data_made_ahead_by_other_processes_are_the_same(  # type: ignore[no-untyped-def]
    small_tokenizer, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, warm_up_steps=0)
    shape = _shape(small_tokenizer)
    here = Run(tmp_path, small_tokenizer, recipe, shape=shape)
    ahead = Run(tmp_path, small_tokenizer, recipe, shape=shape, makers=1)
    ours, theirs = here._pools(3), ahead._pools(3)
    for _ in range(2):
        for one, other in zip(next(ours), next(theirs), strict=True):
            assert torch.equal(one.ids, other.ids)
            assert one.layout == other.layout
    theirs.close()  # type: ignore[attr-defined]


def test_new_folder_has_nothing_to_resume(small_tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert not _run(tmp_path, small_tokenizer).resume()


def test_full_disk_loses_no_checkpoint(  # type: ignore[no-untyped-def]
    small_tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _run(tmp_path, small_tokenizer).train(until=1)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    run = _run(tmp_path, small_tokenizer)
    assert run.resume()
    monkeypatch.setattr(train, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        run.train(until=3, save_every=0.0)
    assert run.progress.step == 3  # went on past the saves that failed, and raised at the end only
    assert "could not be written" in capsys.readouterr().err
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as each worker has: sums of bfloat16 depend on it, and with them the experts that are drawn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_workers_step_by_the_mean_of_their_gradients(small_tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = replace(RECIPE, workers=2)
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    torch.multiprocessing.spawn(_worker, args=(tmp_path, recipe), nprocs=2)
    together = _run(tmp_path, small_tokenizer, recipe)
    assert together.resume()
    apart = [_run(tmp_path / str(w), small_tokenizer, recipe, worker=w) for w in range(2)]
    streams = [run._batches() for run in apart]
    for step in range(2):
        gradients = []
        for run, stream in zip(apart, streams, strict=True):
            torch.manual_seed((recipe.seed * 1_000_003 + step) * 2 + run.worker)
            step_losses(run.model, next(stream), recipe).total.backward()
            gradients.append(run.optimiser.gradients())
            run.progress.step += 1
        for run in apart:
            run.progress.step -= 1
            mean = {name: (gradients[0][name] + gradients[1][name]) / 2 for name in gradients[0]}
            run.optimiser.step(run._rate(), mean)
            run.progress.step += 1
    for name, tensor in apart[0].optimiser.tensors().items():
        assert torch.allclose(tensor, together.optimiser.tensors()[name], atol=1e-6), name


def _worker(worker: int, folder: Path, recipe: Recipe) -> None:
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=(folder / "meeting").as_uri(), rank=worker, world_size=2
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    _run(folder, tokenizer, recipe, worker).train(until=2)
    torch.distributed.destroy_process_group()
