from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.cancel import CancelToken, Progress
from workbench.corpus.documents import Corpus, Document
from workbench.errors import Cancelled, CheckpointError
from workbench.retrieval import encoders
from workbench.retrieval.encoders import (
    EMBEDDED_PACKAGE,
    EMBEDDED_SHA256,
    SentenceEncoder,
    load_encoder,
    same_encoder,
)
from workbench.retrieval.retrievers import build_retriever, open_retriever


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    """In float32, so that vectors can be compared digit by digit."""
    return load_encoder(device="cpu", precision="float32")


def test_vectors_are_mean_pooled_states_of_length_one(
    encoder: SentenceEncoder, embedded_folder: Path
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(embedded_folder)
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder)
    expected = []
    for text in ("a pump", "The valve leaked in March."):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected.append((states.mean(0) / states.mean(0).norm()).numpy())
    found = encoder.encode(["a pump", "The valve leaked in March."])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.array(expected), atol=2e-6)


def test_bfloat16_passages_are_nearly_those_of_float32_and_questions_are(
    encoder: SentenceEncoder,
) -> None:
    short = load_encoder(device="cpu", precision="bfloat16")
    texts = ["a pump", "The valve leaked in March.", "Der Deich ist neun Meter hoch.", "x" * 90]
    found, exact = short.encode(texts), encoder.encode(texts)
    assert found.dtype == np.float32
    cosines = (found * exact).sum(1)
    assert (cosines > 0.9995).all() and not np.array_equal(found, exact)
    np.testing.assert_array_equal(
        short.encode(texts, kind="query"), encoder.encode(texts, kind="query")
    )
    assert same_encoder(short.identity, encoder.identity)
    with pytest.raises(ValueError, match="precision='int8' is not known"):
        load_encoder(device="cpu", precision="int8")  # type: ignore[arg-type]


def test_order_is_kept_when_texts_are_sorted_by_length(encoder: SentenceEncoder) -> None:
    texts = ["one", "one two three four five six", "one two", "one two three"]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts, batch_size=2), alone, atol=2e-6)


def test_no_texts_give_no_vectors(encoder: SentenceEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_empty_text_has_a_finite_vector(encoder: SentenceEncoder) -> None:
    assert np.isfinite(encoder.encode([""])).all()


def test_longest_text_fits_and_one_token_more_is_refused(encoder: SentenceEncoder) -> None:
    assert encoder.max_tokens == 254
    assert encoder.encode(["pump " * 254]).shape == (1, 384)
    with pytest.raises(ValueError, match=r"text 2 of 3 has 255 tokens.*at most 254"):
        encoder.encode(["pump", "pump " * 255, "pump"])


def test_last_token_of_the_longest_text_counts(encoder: SentenceEncoder) -> None:
    one, other = encoder.encode(["pump " * 253 + "pump", "pump " * 253 + "eel"])
    assert float(one @ other) < 0.99999


def test_measure_gives_offsets_of_every_token(encoder: SentenceEncoder) -> None:
    text = "naïve 東京 pump-house\n" * 200
    offsets = encoder.measure(text)
    assert offsets.shape[1] == 2 and len(offsets) > 1000
    assert offsets[-1, 1] == len(text.rstrip())
    assert (offsets[1:, 0] >= offsets[:-1, 1]).all()
    assert [text[s:e] for s, e in offsets[:3].tolist()] == ["naïve", "東", "京"]


def test_measure_of_nothing_is_empty(encoder: SentenceEncoder) -> None:
    assert encoder.measure("").shape == (0, 2)


def test_half_of_a_surrogate_pair_is_read_as_one_character(encoder: SentenceEncoder) -> None:
    assert encoder.measure("\udcff pump")[-1].tolist() == [2, 6]
    assert encoder.encode(["\udcff pump"]).shape == (1, 384)


def test_progress_counts_texts_up_to_all(encoder: SentenceEncoder) -> None:
    steps: list[Progress] = []
    encoder.encode(["a", "b", "c"], batch_size=2, progress=steps.append)
    assert steps == [Progress("embed", 2, 3), Progress("embed", 3, 3)]


def test_cancelled_embedding_raises(encoder: SentenceEncoder) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled, match="embedding"):
        encoder.encode(["a"], cancel=token)


def test_unknown_kind_is_refused(encoder: SentenceEncoder) -> None:
    with pytest.raises(ValueError, match="kind='title'"):
        encoder.encode(["a"], kind="title")  # type: ignore[arg-type]


def test_identity_holds_the_sha256_of_the_weights(encoder: SentenceEncoder) -> None:
    assert encoder.identity["weights_sha256"] == EMBEDDED_SHA256
    assert encoder.identity["max_tokens"] == 254


def test_same_weights_elsewhere_are_the_same_encoder(
    encoder: SentenceEncoder, embedded_folder: Path
) -> None:
    copy = load_encoder(embedded_folder, device="cpu")
    assert copy.name == "model"
    assert same_encoder(copy.identity, encoder.identity)


def test_other_limit_is_another_encoder(encoder: SentenceEncoder, other_folder: Path) -> None:
    other = load_encoder(other_folder, device="cpu")
    assert other.max_tokens == 30
    assert not same_encoder(other.identity, encoder.identity)


def test_prompts_of_a_model_are_used_and_leave_less_room(
    encoder: SentenceEncoder, other_folder: Path
) -> None:
    config = other_folder / "config_sentence_transformers.json"
    config.unlink()
    config.write_text(
        '{"prompts": {"query": "query: ", "document": "a passage: "}}', encoding="utf-8"
    )
    other = load_encoder(other_folder, device="cpu", precision="float32")
    assert other.max_tokens == 30 - 3
    np.testing.assert_allclose(
        other.encode(["pump"], kind="query"), encoder.encode(["query: pump"]), atol=2e-6
    )
    np.testing.assert_allclose(
        other.encode(["pump"]), encoder.encode(["a passage: pump"]), atol=2e-6
    )
    with pytest.raises(ValueError, match="28 tokens"):
        other.encode(["pump " * 28])


def test_one_changed_byte_of_the_embedded_weights_is_refused(
    embedded_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_folder, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    monkeypatch.setattr(encoders, "_embedded_folder", lambda: folder)
    with pytest.raises(CheckpointError, match="expected 53aa51172d14…"):
        load_encoder()


def test_a_folder_without_a_model_is_refused_without_looking_below(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no encoder in .*: it holds neither modules\.json"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", 3])
def test_a_name_in_place_of_an_encoder_is_refused(
    name: Any, encoder: SentenceEncoder, tmp_path: Path
) -> None:
    corpus = Corpus((Document("a.txt", "A."),))
    build_retriever(corpus, encoder=encoder).save(tmp_path)
    message = rf"is no encoder; give load_encoder\('{name}'\)"
    with pytest.raises(ValueError, match=message):
        build_retriever(corpus, encoder=name)
    with pytest.raises(ValueError, match=message):
        open_retriever(tmp_path, encoder=name)


def test_weights_in_a_pickle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no safetensors"):
        load_encoder(tmp_path)


def test_a_part_in_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").touch()
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"2_Dense/pytorch_model\.bin as a pickle"):
        load_encoder(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(other_folder: Path) -> None:
    ran = other_folder / "ran"
    (other_folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    modules = other_folder / "modules.json"
    modules.unlink()
    modules.write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]')
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_encoder(other_folder, device="cpu")
    assert not ran.exists()


def test_damaged_weights_of_a_folder_are_a_clear_error(other_folder: Path) -> None:
    weights = other_folder / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="'short-encoder' could not be loaded"):
        load_encoder(other_folder, device="cpu")


@pytest.mark.parametrize("spec", ["./nowhere", "/no/where/at/all", "a b", "../up"])
def test_path_that_is_no_folder_never_asks_the_hub(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match="no encoder at"):
        load_encoder(spec)


def test_hub_without_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("cannot reach\nthe hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match=r"^no folder 'owner/name'.*\(cannot reach\)"
    ) as caught:
        load_encoder("owner/name")
    assert "\n" not in str(caught.value)


def test_hub_download_takes_no_code_and_no_pickle(
    other_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def download(repo: str, **arguments: object) -> str:
        asked.update(arguments, repo=repo)
        return str(other_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_encoder("owner/name", device="cpu").name == "owner/name"
    assert asked["allow_patterns"] == ["*.safetensors", "*.json", "*.txt", "*.model"]


def test_device_that_does_not_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="device='tpu' does not answer"):
        load_encoder(device="tpu")


def test_code_of_the_weights_package_is_never_imported() -> None:
    load_encoder(device="cpu")
    assert EMBEDDED_PACKAGE not in sys.modules


def test_importing_the_room_loads_no_heavy_library() -> None:
    program = (
        "import sys; import workbench.retrieval.retrievers; "
        "sys.exit(bool({'torch', 'faiss', 'bm25s', 'sentence_transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
