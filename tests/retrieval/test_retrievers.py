from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.cancel import CancelToken, Progress
from workbench.corpus.documents import Corpus, Document
from workbench.errors import Cancelled, IndexUnusable, InputError
from workbench.retrieval.encoders import SentenceEncoder, load_encoder
from workbench.retrieval.fusion import shares_by_rank, summed
from workbench.retrieval.index_structures import Ranking
from workbench.retrieval.lexical import LexicalIndex
from workbench.retrieval.retrievers import (
    Hit,
    Retriever,
    SearchOptions,
    build_retriever,
    open_retriever,
)

QUESTIONS = [
    "Which valve leaked?",
    "How high is the dike?",
    "When is herring sold?",
    "V-14",
    "Deich",
]


def embedded_texts(retriever: Retriever) -> list[str]:
    """Title, headings and text of every chunk, from the rule and not from the code."""
    texts = []
    for chunk in retriever.chunks:
        document = retriever.documents[chunk.document_id]
        titles = [document.title]
        for section in document.sections:
            if section.start <= chunk.start < section.stop and section.title not in titles:
                titles.append(section.title)
        texts.append(" > ".join(titles) + "\n" + chunk.text)
    return texts


def places(hits: list[Hit]) -> list[str]:
    return [hit.chunk.id for hit in hits]


def test_chunks_are_spans_of_their_documents(retriever: Retriever) -> None:
    assert len(retriever) >= 5
    for chunk in retriever.chunks:
        assert retriever.document(chunk.document_id).text[chunk.start : chunk.stop] == chunk.text


@pytest.mark.parametrize("question", QUESTIONS)
def test_dense_equals_all_cosines_sorted(
    question: str, retriever: Retriever, encoder: SentenceEncoder
) -> None:
    vectors = encoder.encode(embedded_texts(retriever))
    cosines = vectors @ encoder.encode([question], kind="query")[0]
    order = np.argsort(-cosines, kind="stable")
    hits = retriever.search(question, k=len(retriever), mode="dense")
    assert places(hits) == [retriever.chunks[row].id for row in order]
    np.testing.assert_allclose([hit.score for hit in hits], cosines[order], atol=2e-6)


@pytest.mark.parametrize("question", QUESTIONS)
def test_lexical_equals_bm25_scores_sorted(question: str, retriever: Retriever) -> None:
    scores = LexicalIndex.build(embedded_texts(retriever)).scores(question)
    order = [row for row in np.argsort(-scores, kind="stable") if scores[row] > 0]
    hits = retriever.search(question, k=len(retriever), mode="lexical")
    assert places(hits) == [retriever.chunks[row].id for row in order]
    assert [hit.score for hit in hits] == scores[order].tolist()


@pytest.mark.parametrize("question", QUESTIONS)
def test_hybrid_is_the_sum_of_reciprocal_ranks(question: str, retriever: Retriever) -> None:
    whole = len(retriever)
    sums = {chunk.id: Fraction(0) for chunk in retriever.chunks}
    for mode in ("dense", "lexical"):
        for hit in retriever.search(question, k=whole, mode=mode):  # type: ignore[arg-type]
            sums[hit.chunk.id] += Fraction(1, 60 + hit.rank)
    expected = sorted(sums, key=lambda id: -sums[id])  # stable: ties stay in the order of chunks
    hits = retriever.search(question, k=whole, options=SearchOptions(fusion="rank"))
    assert places(hits) == expected
    np.testing.assert_allclose([hit.score for hit in hits], [float(sums[id]) for id in expected])


@pytest.mark.parametrize("question", QUESTIONS)
def test_hybrid_is_the_mean_of_scaled_scores(question: str, retriever: Retriever) -> None:
    sums = {chunk.id: 0.0 for chunk in retriever.chunks}
    for mode in ("dense", "lexical"):
        alone = retriever.search(question, k=len(retriever), mode=mode)  # type: ignore[arg-type]
        low, high = alone[-1].score, alone[0].score
        for hit in alone:
            sums[hit.chunk.id] += 0.5 * ((hit.score - low) / (high - low) if high > low else 1.0)
    hits = retriever.search(question, k=len(retriever))
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert {h.chunk.id: h.score for h in hits} == pytest.approx(sums)


def test_votes_are_the_ranks_and_scores_of_each_voter(retriever: Retriever) -> None:
    alone: dict[tuple[str, str], tuple[int, float]] = {}
    for mode in ("dense", "lexical"):
        for hit in retriever.search("Which valve leaked?", k=len(retriever), mode=mode):  # type: ignore[arg-type]
            alone[mode, hit.chunk.id] = hit.rank, hit.score
            assert [(v.retriever, v.rank, v.score) for v in hit.votes] == [
                (mode, hit.rank, hit.score)
            ]
    fused = {
        (vote.retriever, hit.chunk.id): (vote.rank, vote.score)
        for hit in retriever.search("Which valve leaked?", k=len(retriever))
        for vote in hit.votes
    }
    assert fused == alone


def test_ranks_count_from_one(retriever: Retriever) -> None:
    assert [hit.rank for hit in retriever.search("pump", k=3)] == [1, 2, 3]


def test_hybrid_looks_at_fifty_or_four_k_candidates(encoder: SentenceEncoder) -> None:
    lines = "\n\n".join(f"Buoy number {n} was painted." for n in range(60))
    retriever = build_retriever(
        Corpus((Document("buoys.txt", lines, "Buoys"),)), encoder=encoder, max_tokens=8
    )
    assert len(retriever) >= 60
    for k, depth in ((5, 50), (13, 52), (len(retriever), len(retriever))):
        ranks = [v.rank for hit in retriever.search("buoy", k=k) for v in hit.votes]
        assert max(ranks) <= depth
    found = retriever.search("buoy", k=len(retriever))
    assert {v.retriever: v.rank for hit in found for v in hit.votes if v.rank == len(retriever)}


def test_equal_passages_keep_their_order_in_every_mode(encoder: SentenceEncoder) -> None:
    documents = tuple(Document(f"{n}.txt", "The lamp was lit at dusk.", "Log") for n in range(9))
    retriever = build_retriever(Corpus(documents), encoder=encoder)
    for mode in ("dense", "lexical", "hybrid"):
        found = retriever.search("Who lit the lamp?", k=4, mode=mode)  # type: ignore[arg-type]
        assert [hit.chunk.document_id for hit in found] == ["0.txt", "1.txt", "2.txt", "3.txt"]


def test_equal_texts_are_embedded_once(encoder: SentenceEncoder) -> None:
    class Counting:
        name, identity, dim = encoder.name, encoder.identity, encoder.dim
        max_tokens, measure = encoder.max_tokens, encoder.measure
        seen = 0

        def encode(self, texts: list[str], **arguments: Any) -> Any:
            self.seen += len(texts)
            return encoder.encode(texts, **arguments)

    counting = Counting()
    documents = tuple(Document(f"{n}.txt", "The lamp was lit.", "Log") for n in range(9))
    build_retriever(Corpus(documents), encoder=counting, mode="dense")
    assert counting.seen == 1


def test_title_finds_a_passage_that_does_not_repeat_it(encoder: SentenceEncoder) -> None:
    documents = (
        Document("a.txt", "The lamp was lit at dusk.", "Gull Head lighthouse"),
        Document("b.txt", "The net was cut at dawn.", "Herring"),
    )
    retriever = build_retriever(Corpus(documents), encoder=encoder)
    for mode in ("dense", "lexical", "hybrid"):
        hit = retriever.search("Gull Head lighthouse", k=1, mode=mode)[0]  # type: ignore[arg-type]
        assert hit.chunk.text == "The lamp was lit at dusk."


def test_long_title_is_shortened_before_the_text_is(other_folder: Path) -> None:
    short = load_encoder(other_folder, device="cpu")  # reads 30 tokens
    text = "The tide turned at six and the boats went out."
    corpus = Corpus((Document("log.txt", text, "harbour " * 100),))
    retriever = build_retriever(corpus, encoder=short, max_tokens=30)
    assert [chunk.text for chunk in retriever.chunks] == [text]
    count = len(short.measure(text))
    expected = short.encode(["harbour " * (30 - count - 1) + text])
    hit = retriever.search("tide", k=1, mode="dense")[0]
    np.testing.assert_allclose(
        hit.score, float((expected @ short.encode(["tide"], kind="query").T)[0, 0]), atol=2e-6
    )


def test_chunk_as_long_as_the_encoder_reads_drops_the_title(other_folder: Path) -> None:
    short = load_encoder(other_folder, device="cpu")
    corpus = Corpus((Document("log.txt", "tide " * 90, "Log"),))
    retriever = build_retriever(corpus, encoder=short, max_tokens=30)
    assert [len(short.measure(chunk.text)) for chunk in retriever.chunks] == [30, 30, 30]


def test_question_as_long_as_a_page_is_only_searched_by_its_words(retriever: Retriever) -> None:
    question = "Which valve leaked? " * 80
    with pytest.raises(
        ValueError, match=r"the question has \d+ tokens.*reads at most 254.*mode='lexical'"
    ):
        retriever.search(question)
    assert "V-14" in retriever.search(question, k=1, mode="lexical")[0].chunk.text


def test_words_that_no_chunk_holds_are_no_hits(retriever: Retriever) -> None:
    assert retriever.search("zyzzyva", mode="lexical") == []
    assert len(retriever.search("zyzzyva", k=3)) == 3  # the vectors still vote


@pytest.mark.parametrize("question", [None, 3, b"pump", ["pump"]])
def test_a_question_that_is_no_text_is_refused(question: Any, retriever: Retriever) -> None:
    with pytest.raises(ValueError, match=r"the question is .*; ask with text"):
        retriever.search(question)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_empty_question_is_refused(question: str, retriever: Retriever) -> None:
    with pytest.raises(ValueError, match="the question is empty"):
        retriever.search(question)
    with pytest.raises(ValueError, match="the question is empty"):
        retriever.embedded(question)
    with pytest.raises(ValueError, match="the question is empty"):
        retriever.explain(retriever.search("pump", k=1)[0], question)


def test_k_beyond_the_chunks_finds_them_all(retriever: Retriever) -> None:
    n = len(retriever)
    modes: tuple[Any, ...] = ("dense", "hybrid")
    for mode in modes:
        assert retriever.search("pump", k=n + 7, mode=mode) == retriever.search(
            "pump", k=n, mode=mode
        )
        assert len(retriever.search("pump", k=n + 7, mode=mode)) == n


@pytest.mark.parametrize("k", [0, -1, "3", True, 2.0])
def test_what_is_no_number_of_hits_is_refused(k: Any, retriever: Retriever) -> None:
    with pytest.raises(ValueError, match=re.escape(f"k={k!r} is not a number of hits")):
        retriever.search("pump", k=k)


def test_one_document_or_one_id_in_place_of_a_list_is_refused(retriever: Retriever) -> None:
    with pytest.raises(ValueError, match=r"give read_corpus\(…\), or \[document\]"):
        retriever.add(Document("a", "A.", "a"))  # type: ignore[arg-type]
    for wrong in (None, "a", [None], ["a"], 3):
        with pytest.raises(ValueError, match=r"is no list of documents|is no document; give wb"):
            retriever.add(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"is no list of documents|is no document; give wb"):
            build_retriever(wrong)  # type: ignore[arg-type]
    for ids in (None, 3, [None], [Document("a", "A.")]):
        with pytest.raises(ValueError, match=r"takes a list of ids|is no id of a document"):
            retriever.delete(ids)  # type: ignore[arg-type]
    for hit in (None, "pump.md", [], retriever.chunks[0]):
        with pytest.raises(
            ValueError, match=r"is no hit; give one of retriever\.search\('valve'\)"
        ):
            retriever.explain(hit, "valve")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"write delete\(\['pump'\]\)"):
        retriever.delete("pump")


def test_unknown_mode_is_refused(retriever: Retriever) -> None:
    with pytest.raises(ValueError, match="mode='sparse' is not known"):
        retriever.search("pump", mode="sparse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode='sparse' is not known"):
        build_retriever(retriever.to_corpus(), mode="sparse")  # type: ignore[arg-type]


def test_mode_that_was_not_built_is_refused(retriever: Retriever, encoder: SentenceEncoder) -> None:
    lexical = build_retriever(retriever.to_corpus(), encoder=encoder, mode="lexical")
    assert lexical.search("valve", k=1)
    with pytest.raises(ValueError, match="built with mode='lexical' and has no dense part"):
        lexical.search("valve", mode="hybrid")


def test_chunks_longer_than_the_encoder_reads_are_refused(encoder: SentenceEncoder) -> None:
    with pytest.raises(ValueError, match="max_tokens=255 is outside 1 to 254"):
        build_retriever(Corpus(()), encoder=encoder, max_tokens=255)


@pytest.mark.parametrize("documents", [(), (Document("empty.txt", " \n", "empty"),)])
def test_corpus_without_text_is_an_input_error(
    documents: tuple[Document, ...], encoder: SentenceEncoder
) -> None:
    with pytest.raises(InputError, match=f"no text to index in {len(documents)} document"):
        build_retriever(Corpus(documents), encoder=encoder)


def test_two_documents_of_one_id_are_refused(encoder: SentenceEncoder) -> None:
    same = Document("a.txt", "The lamp was lit.", "a")
    with pytest.raises(ValueError, match=r"two documents have the id 'a\.txt'"):
        build_retriever(Corpus((same, same)), encoder=encoder, mode="lexical")


def test_progress_tells_of_chunks_and_vectors(
    retriever: Retriever, encoder: SentenceEncoder
) -> None:
    steps: list[Progress] = []
    build_retriever(retriever.to_corpus(), encoder=encoder, progress=steps.append)
    assert Progress("chunk", 4, 4) in steps
    assert steps[-1] == Progress("embed", len(retriever), len(retriever))


def test_building_can_be_cancelled(retriever: Retriever, encoder: SentenceEncoder) -> None:
    token = CancelToken()
    with pytest.raises(Cancelled):
        build_retriever(
            retriever.to_corpus(), encoder=encoder, cancel=token, progress=lambda _: token.cancel()
        )


def test_document_is_found_by_its_stem(retriever: Retriever) -> None:
    assert retriever.document("pump") is retriever.documents["manual/pump.md"]
    with pytest.raises(InputError, match="no document 'pumps'"):
        retriever.document("pumps")


def test_repr_names_the_next_step(retriever: Retriever) -> None:
    assert repr(retriever).startswith("Retriever(4 documents, ")
    assert "next: .search" in repr(retriever)
    assert "next: .chunk" in repr(retriever.search("pump", k=1)[0])


def test_hit_as_json_is_what_the_command_line_promises(retriever: Retriever) -> None:
    facts = json.loads(json.dumps(retriever.search("valve", k=1)[0].to_dict()))
    assert facts["rank"] == 1 and facts["document"] == "manual/pump.md"
    text = retriever.documents[facts["document"]].text
    assert text[facts["start"] : facts["stop"]] == facts["text"]
    assert {"score", "chunk_id", "votes"} < facts.keys()


def test_fusion_of_nothing_is_empty() -> None:
    nothing = np.array([], dtype=np.int64)
    assert summed(shares_by_rank([Ranking(nothing, nothing)])).rows.tolist() == []


def test_fusion_breaks_ties_by_row() -> None:
    one, other = np.array([9, 4]), np.array([4, 9])
    assert summed(shares_by_rank([Ranking(one, one), Ranking(other, other)])).rows.tolist() == [
        4,
        9,
    ]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_opened_index_answers_as_the_built_one(
    mode: str, retriever: Retriever, encoder: SentenceEncoder, tmp_path: Path
) -> None:
    built = build_retriever(retriever.to_corpus(), encoder=encoder, mode=mode)  # type: ignore[arg-type]
    built.save(tmp_path / "index")
    opened = open_retriever(tmp_path / "index", encoder=encoder)
    assert opened.mode == mode and opened.max_tokens == 128
    assert list(opened.chunks) == list(built.chunks)
    assert dict(opened.documents) == dict(built.documents)
    for question in QUESTIONS[:2]:
        assert opened.search(question, k=3) == built.search(question, k=3)


def test_line_separators_in_a_text_survive_saving(encoder: SentenceEncoder, tmp_path: Path) -> None:
    text = "One\u2028two\u0085three\rfour\x0cfive.\r\nSix \U0001f41f 東京.\n"
    built = build_retriever(
        Corpus((Document("odd.txt", text, "odd"),)), encoder=encoder, mode="lexical"
    )
    built.save(tmp_path / "index")
    assert open_retriever(tmp_path / "index", encoder=encoder).documents["odd.txt"].text == text


def test_index_holds_no_pickle_and_no_path_of_this_machine(
    retriever: Retriever, tmp_path: Path
) -> None:
    retriever.save(tmp_path / "index")
    names = {p.name for p in (tmp_path / "index").rglob("*") if p.is_file()}
    assert {"manifest.json", "documents.jsonl", "chunks.npy", "vectors.f32"} < names
    for path in (tmp_path / "index").rglob("*"):
        assert path.suffix in {"", ".json", ".jsonl", ".npy", ".f32", ".utf8"}
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes()


def test_same_corpus_gives_the_same_files(retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "one")
    retriever.save(tmp_path / "two")
    for one in (p for p in (tmp_path / "one").rglob("*") if p.is_file()):
        other = tmp_path / "two" / one.relative_to(tmp_path / "one")
        assert one.read_bytes() == other.read_bytes()


def test_index_of_another_encoder_is_refused(
    retriever: Retriever, other_folder: Path, tmp_path: Path
) -> None:
    retriever.save(tmp_path / "index")
    other = load_encoder(other_folder, device="cpu")
    message = r"the encoder 'all-MiniLM-L6-v2' and opened with 'short-encoder' \(other max_tokens\)"
    with pytest.raises(IndexUnusable, match=message):
        open_retriever(tmp_path / "index", encoder=other)


def test_index_of_the_same_encoder_under_another_name_opens(
    retriever: Retriever, embedded_folder: Path, tmp_path: Path
) -> None:
    retriever.save(tmp_path / "index")
    same = load_encoder(embedded_folder, device="cpu")
    assert len(open_retriever(tmp_path / "index", encoder=same)) == len(retriever)


def test_an_index_inside_the_folder_it_was_made_from_is_not_read_again(tmp_path, encoder):
    from workbench.corpus.readers import read_corpus
    from workbench.retrieval.retrievers import build_retriever, open_retriever

    (tmp_path / "a.txt").write_text("The pump failed.", "utf-8")
    build_retriever(read_corpus(tmp_path), encoder=encoder).save(tmp_path / "index")
    corpus = read_corpus(tmp_path)
    assert [document.id for document in corpus] == ["a.txt"]
    build_retriever(corpus, encoder=encoder).save(tmp_path / "index")
    assert len(open_retriever(tmp_path / "index", encoder=encoder)) == 1


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FAISS sees no GPU"):
        open_retriever(tmp_path, device="cuda")
    with pytest.raises(ValueError, match="device='tpu' is not known"):
        build_retriever(Corpus(()), device="tpu")  # type: ignore[arg-type]
