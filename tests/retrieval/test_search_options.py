"""Filters, fusion, expansion, reranking, variety and explanations of a retriever's hits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.cli import main
from workbench.corpus.chunks import document_sentences
from workbench.corpus.documents import Corpus, Document, Page, Section
from workbench.corpus.readers import read_corpus
from workbench.errors import CheckpointError
from workbench.retrieval.encoders import SentenceEncoder
from workbench.retrieval.fusion import shares_by_rank, shares_by_score, summed, varied
from workbench.retrieval.index_structures import Ranking
from workbench.retrieval.rerank import load_reranker
from workbench.retrieval.retrievers import (
    Retriever,
    SearchOptions,
    build_retriever,
    open_retriever,
)


def fish(n: int) -> Document:
    text = f"Fish {n} is sold on day {n % 7}.\n\nIts price is {n} crowns.\n"
    language = ("en", "de", "fr")[n % 3]
    pages = (Page(1, 0, text.index("Its")), Page(2, text.index("Its"), len(text)))
    sections = (Section("Sale", 1, 0, len(text)),) if n % 2 else ()
    return Document(
        f"{'even' if n % 2 == 0 else 'odd'}/{n}.txt",
        text,
        f"Fish {n}",
        sections=sections,
        pages=pages,
        language=language,
        metadata={"year": 1990 + n, "tags": ["old"] if n < 15 else ["new", "cold"]},
    )


@pytest.fixture(scope="module")
def market(encoder: SentenceEncoder) -> Retriever:
    corpus = Corpus(tuple(fish(n) for n in range(30)))
    return build_retriever(corpus, encoder=encoder, max_tokens=10)


@pytest.fixture(scope="module")
def kept(market: Retriever, encoder: SentenceEncoder, tmp_path_factory: Any) -> Retriever:
    """The same in a folder, with another segment and deleted documents that match every filter below."""
    folder = tmp_path_factory.mktemp("kept") / "index"
    first = build_retriever(
        Corpus(tuple(fish(n) for n in range(20))), encoder=encoder, max_tokens=10
    )
    first.add([Document(f"odd/x{n}.txt", "Gone.", "", metadata={"year": 2000}) for n in range(3)])
    first.add([fish(n) for n in range(20, 30)])
    first.delete([f"odd/x{n}.txt" for n in range(3)])
    first.save(folder)
    return open_retriever(folder, encoder=encoder)


WHERE: list[tuple[Any, Any]] = [
    ({"language": "de"}, lambda n, page: n % 3 == 1),
    ({"document": {"$glob": "odd/*"}}, lambda n, page: n % 2 == 1),
    ({"page": 2}, lambda n, page: page == 2),
    ({"section": "Sale", "page": {"$lt": 2}}, lambda n, page: n % 2 == 1 and page == 1),
    ({"year": {"$gte": 2015}}, lambda n, page: n >= 25),
    ({"tags": "cold", "title": {"$ne": "Fish 20"}}, lambda n, page: n >= 15 and n != 20),
    ({"metadata.year": 1993}, lambda n, page: n == 3),
    ({"language": "es"}, lambda n, page: False),
]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
@pytest.mark.parametrize(("where", "holds"), WHERE)
def test_a_filter_finds_all_that_match_and_nothing_else(
    where: Any, holds: Any, mode: Any, market: Retriever, kept: Retriever
) -> None:
    for retriever in (market, kept):
        wanted = {(n, page) for n in range(30) for page in (1, 2) if holds(n, page)}
        question = "fish price sold day crowns"
        hits = retriever.search(question, k=60, mode=mode, where=where)
        found = {
            (int(Path(h.chunk.document_id).stem), 1 if "sold" in h.chunk.text else 2) for h in hits
        }
        assert found == wanted and len(hits) == len(wanted)
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        everything = retriever.search(question, k=60, mode=mode)
        if mode != "hybrid":  # scores do not depend on the filter
            scores = {hit.chunk: hit.score for hit in everything}
            assert [h.score for h in hits] == pytest.approx([scores[h.chunk] for h in hits])


def test_unknown_fields_and_bad_filters_are_named(market: Retriever) -> None:
    with pytest.raises(ValueError, match="no document has the field 'langauge'; perhaps language"):
        market.search("fish", where={"langauge": "de"})
    with pytest.raises(ValueError, match=r"year: '\$near' is no operator"):
        market.search("fish", where={"year": {"$near": 3}})
    assert market.fields() == [
        "document", "title", "language", "format", "page", "section", "year", "tags",
    ]  # fmt: skip


def test_fusion_by_rank_and_score_follow_their_formulas() -> None:
    dense = Ranking(np.array([0.9, 0.5, 0.4]), np.array([4, 2, 7]))
    words = Ranking(np.array([8.0, 2.0]), np.array([7, 9]))
    by_rank = summed(shares_by_rank([dense, words], weights=[2.0, 1.0]))
    expected = {4: 2 / 61, 2: 2 / 62, 7: 2 / 63 + 1 / 61, 9: 1 / 62}
    assert dict(zip(by_rank.rows.tolist(), by_rank.scores.tolist(), strict=True)) == pytest.approx(
        expected
    )
    assert by_rank.rows.tolist() == [7, 4, 2, 9]
    by_score = summed(shares_by_score([dense, words], weights=[3.0, 1.0]))
    expected = {4: 0.75, 2: 0.75 * 0.2, 7: 0.25, 9: 0.0}
    assert dict(
        zip(by_score.rows.tolist(), by_score.scores.tolist(), strict=True)
    ) == pytest.approx(expected)
    with pytest.raises(ValueError, match="must be 2 numbers, none below 0"):
        shares_by_rank([dense, words], weights=[1.0, -1.0])
    with pytest.raises(ValueError, match="not all 0"):
        shares_by_score([dense, words], weights=[0.0, 0.0])


def test_weights_move_hybrid_hits_to_one_voter(market: Retriever) -> None:
    question = "What does fish 12 cost?"
    only = SearchOptions(fusion="rank", weights={"dense": 0.0})
    by_words = market.search(question, k=3, options=only)
    lexical = market.search(question, k=3, mode="lexical")
    assert [h.chunk for h in by_words] == [h.chunk for h in lexical]
    by_score = market.search(question, k=3, options=SearchOptions(fusion="score"))
    assert 0 < by_score[0].score <= 1
    with pytest.raises(ValueError, match="weights names 'bm25'"):
        SearchOptions(weights={"bm25": 1.0})
    with pytest.raises(ValueError, match="fusion='max' is not known"):
        SearchOptions(fusion="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="diversity=2 is outside 0"):
        SearchOptions(diversity=2)
    with pytest.raises(ValueError, match="candidates=0 is no number"):
        SearchOptions(candidates=0)


def test_an_expansion_votes_and_says_what_it_asked(market: Retriever) -> None:
    def expand(question: str) -> Sequence[str]:
        return [question, "  ", "Fish 17 crowns", "Fish 17 crowns"]

    hits = market.search("seventeen", k=5, mode="lexical", options=SearchOptions(expand=expand))
    assert "17" in hits[0].chunk.text
    assert {vote.query for hit in hits for vote in hit.votes} == {"Fish 17 crowns"}
    plain = market.search("Fish 17 crowns", k=5, mode="lexical")
    assert [h.chunk for h in hits] == [h.chunk for h in plain]


def test_shares_follow_the_weights(market: Retriever) -> None:
    question = "What does fish 12 cost?"
    for options in (
        SearchOptions(fusion="rank", weights={"dense": 1.9, "lexical": 0.1}),
        SearchOptions(weights={"dense": 3.0}),
        SearchOptions(expand=lambda _: ["price of the fish"]),
    ):
        for hit in market.search(question, k=5, options=options):
            assert sum(vote.share or 0 for vote in hit.votes) == pytest.approx(hit.score)
    weighted = market.search(
        question, k=1, options=SearchOptions(fusion="rank", weights={"dense": 1.9})
    )[0]
    dense = next(vote for vote in weighted.votes if vote.retriever == "dense")
    assert dense.share == pytest.approx(1.9 / (60 + dense.rank))


def test_what_is_no_list_of_wordings_and_no_number_is_refused(market: Retriever) -> None:
    with pytest.raises(ValueError, match="expand gave 'eel'; it must give a list"):
        market.search("fish", options=SearchOptions(expand=lambda _: "eel"))
    with pytest.raises(ValueError, match="none below 0"):
        market.search("fish", options=SearchOptions(weights={"dense": float("nan")}))
    with pytest.raises(ValueError, match=r"k=2\.0 is not a number of hits"):
        market.search("fish", k=2.0)  # type: ignore[arg-type]


def test_variety_chooses_unlike_passages(market: Retriever) -> None:
    question = "What is the price of a fish?"
    plain = market.search(question, k=10, mode="dense")
    mixed = market.search(question, k=10, mode="dense", options=SearchOptions(diversity=0.8))
    assert mixed[0].chunk == plain[0].chunk

    def likeness(hits: Any) -> float:
        vectors = market.encoder.encode([hit.chunk.text for hit in hits])
        return float((vectors @ vectors.T)[np.triu_indices(len(hits), 1)].mean())

    assert likeness(mixed) < likeness(plain)
    with pytest.raises(ValueError, match="outside 0"):
        varied(np.ones(2), np.eye(2, dtype=np.float32), 1, diversity=-1)


@pytest.fixture(scope="module")
def cross_encoder(embedded_folder: Path, tmp_path_factory: Any) -> Path:
    """A tiny cross-encoder with random weights and the words of MiniLM."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder: Path = tmp_path_factory.mktemp("cross") / "tiny-cross"
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reranker_orders_the_candidates_by_its_own_scores(
    market: Retriever, cross_encoder: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reranker = load_reranker(cross_encoder, device="cpu")
    question = "What does fish 12 cost?"
    options = SearchOptions(reranker=reranker, candidates=20)
    hits = market.search(question, k=20, options=options)
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    with torch.inference_mode():
        pairs = tokenizer(
            [question] * 20, [h.chunk.text for h in hits], return_tensors="pt", padding=True
        )
        scores = torch.sigmoid(model(**pairs).logits[:, 0]).tolist()
    assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert [hit.votes[-1].retriever for hit in hits] == ["reranker"] * 20
    assert [hit.votes[-1].rank for hit in hits] == list(range(1, 21))
    plain = market.search(question, k=20, options=SearchOptions(candidates=20))
    assert len({h.chunk for h in plain} - {h.chunk for h in hits}) <= 20
    assert reranker.cut_texts == 0
    reranker.score(question, ["word " * 200, "short"])
    assert reranker.cut_texts == 1


def test_a_reranker_that_cannot_be_loaded_is_one_sentence(
    tmp_path: Path, embedded_folder: Path
) -> None:
    with pytest.raises(CheckpointError, match="no reranker at '/nowhere'"):
        load_reranker("/nowhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match="holds no safetensors weights"):
        load_reranker(tmp_path)


def test_a_broken_reranker_is_refused(market: Retriever) -> None:
    class Broken:
        name = "broken"

        def score(self, question: str, texts: Sequence[str]) -> np.ndarray:
            return np.full(len(texts), np.nan, dtype=np.float32)

    with pytest.raises(ValueError, match="the reranker 'broken' gave no finite score"):
        market.search("fish", options=SearchOptions(reranker=Broken()))


def test_an_explanation_adds_up(market: Retriever) -> None:
    question = "Which fish costs 12 crowns?"
    for hit in market.search(question, k=5):
        why = market.explain(hit, question)
        votes = {vote.retriever: vote for vote in hit.votes}
        if "lexical" in votes:
            assert sum(why.words.values()) == pytest.approx(why.bm25, rel=1e-5)
            assert why.bm25 == pytest.approx(votes["lexical"].score, rel=1e-5)
        if "dense" in votes:
            assert why.cosine == pytest.approx(votes["dense"].score, abs=1e-5)
        assert sum(vote.share or 0 for vote in hit.votes) == pytest.approx(hit.score)
        assert all((word in hit.chunk.text.lower() or word == "fish") == (share > 0)
                   for word, share in why.words.items())  # fmt: skip
        assert f"rank {hit.rank}" in str(why) and "<table>" in why._repr_html_()
    alone = market.search(question, k=1, mode="lexical")[0]
    assert [vote.share for vote in alone.votes] == [None]
    assert "fused" not in str(market.explain(alone, question))
    with pytest.raises(ValueError, match="is no hit of this index as it is now"):
        other = build_retriever(Corpus((Document("a.txt", "Alone.", ""),)), encoder=market.encoder)
        market.explain(other.search("alone", k=1)[0], question)
    with pytest.raises(ValueError, match="was found for another question than 'When'"):
        market.explain(market.search(question, k=1)[0], "When")


def test_an_explanation_escapes_what_it_shows(encoder: SentenceEncoder) -> None:
    document = Document("<b>.txt", "<script>alert(1)</script> pump", "x")
    retriever = build_retriever(Corpus((document,)), encoder=encoder)
    hit = retriever.search("<i>pump</i>", k=1)[0]
    assert "<b>" not in retriever.explain(hit, "<i>pump</i>")._repr_html_()


def test_an_exact_search_finds_what_a_structure_misses(encoder: SentenceEncoder) -> None:
    corpus = Corpus(tuple(fish(n) for n in range(60)))
    exact = build_retriever(corpus, encoder=encoder, mode="dense", index="flat")
    quick = build_retriever(corpus, encoder=encoder, mode="dense", index="hnsw")
    assert quick.report is not None and quick.report.kind == "hnsw"
    question = "the price of fish 3"
    options = SearchOptions(exact=True)
    found = quick.search(question, k=20, options=options)
    assert [h.chunk for h in found] == [h.chunk for h in exact.search(question, k=20)]


def test_what_files_say_of_themselves_can_be_asked_for(
    tmp_path: Path, encoder: SentenceEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    docs, index = tmp_path / "docs", tmp_path / "index"
    docs.mkdir()
    for name, year in (("old", 1998), ("new", 2011)):
        text = f"---\nfirst-author: {name}\ndate: {year}-03-01\ntags: [pump, {name}]\n---\nThe pump failed."
        (docs / f"{name}.md").write_text(text)
    retriever = build_retriever(read_corpus(docs), encoder=encoder)
    retriever.save(index)
    for where, found in (
        ({"date": {"$gte": "2000"}}, {"new.md"}),
        ({"tags": "old"}, {"old.md"}),
        ({"tags": "pump"}, {"old.md", "new.md"}),
        ({"first-author": "new"}, {"new.md"}),
    ):
        for one in (retriever, open_retriever(index, encoder=encoder)):
            hits = one.search("What failed?", where=where)
            assert {hit.chunk.document_id for hit in hits} == found
    terms = ["first-author=new", 'date<"2012"']
    assert main(["search", "pump", "--index", str(index), "--where", *terms, "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {hit["document"] for hit in hits} == {"new.md"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diversity": "0.3"}, "diversity='0.3' is outside"),
        ({"diversity": True}, "diversity=True is outside"),
        ({"candidates": 2.5}, r"candidates=2\.5 is no number of candidates"),
        ({"weights": [1, 2]}, r"weights=\[1, 2\] are none"),
        ({"weights": {"dense": "2"}}, "weights={'dense': '2'} are none"),
        ({"expand": "motor"}, "expand='motor' is no function"),
        ({"reranker": "owner/name"}, r"give load_reranker\('owner/name'\)"),
    ],
)
def test_options_of_the_wrong_kind_are_refused_when_they_are_made(
    options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SearchOptions(**options)


def test_what_is_no_options_is_refused(market: Retriever) -> None:
    for wrong in ("rank", {"fusion": "rank"}, SearchOptions):
        with pytest.raises(ValueError, match="are none; give SearchOptions"):
            market.search("fish", options=wrong)  # type: ignore[arg-type]
    for others in (None, [5]):
        with pytest.raises(ValueError, match="it must give a list of wordings"):
            market.search("fish", options=SearchOptions(expand=lambda _, given=others: given))


def test_a_chunk_is_found_by_every_page_that_it_touches(encoder: SentenceEncoder) -> None:
    text = "One is short.\n\nTwo as well.\n\nThree ends it."
    edges = [0, text.index("Two"), text.index("Three"), len(text)]
    pages = tuple(Page(n + 1, edges[n], edges[n + 1]) for n in range(3))
    plain = Document("b.txt", "No page here.")
    retriever = build_retriever([Document("a.pdf", text, pages=pages), plain], encoder=encoder)
    assert len(retriever) == 2
    for where, found in (
        ({"page": 1}, 1),
        ({"page": 3}, 1),
        ({"page": {"$gte": 2}}, 1),
        ({"page": {"$in": [3, 9]}}, 1),
        ({"page": 4}, 0),
        ({"page": {"$exists": False}}, 1),
    ):
        assert len(retriever.search("short", where=where)) == found
    alone = build_retriever([plain], encoder=encoder)
    with pytest.raises(ValueError, match="no document has the field 'page'; the fields are docu"):
        alone.search("short", where={"page": 1})


def test_front_matter_that_became_metadata_is_no_passage(
    tmp_path: Path, encoder: SentenceEncoder
) -> None:
    (tmp_path / "a.md").write_text("---\nauthor: Ada\nlanguage: da-DK\n---\n# Pump\n\nIt failed.\n")
    (tmp_path / "b.md").write_text("---\nauthor: [Ada\n---\n\nUnreadable above.\n")
    corpus = read_corpus(tmp_path)
    retriever = build_retriever(corpus, encoder=encoder)
    texts = {c.document_id: c.text for c in retriever.chunks}
    assert texts["a.md"] == "# Pump\n\nIt failed."
    assert texts["b.md"].startswith("---\nauthor: [Ada")  # what was not read is still text
    assert corpus["a"].language == "da" and corpus["a"].text.startswith("---\nauthor")
    spans = document_sentences(corpus["a"])
    assert [corpus["a"].text[a:b] for a, b in spans] == ["# Pump", "It failed."]
