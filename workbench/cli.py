"""The command line: each verb calls what a notebook would call. One JSON object on stdout with --json; logs and
errors go to stderr.

Exit codes: 0 done, 2 wrong usage, 3 input could not be read, 4 model or index unusable, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.cli_checkpoint import add_checkpoint_verbs, run_checkpoint
from workbench.cli_route import add_route_options, compared_names, is_trace, route_report
from workbench.errors import InputError, WorkbenchError
from workbench.markup import counted

Result = dict[str, Any]
EXIT_USAGE, EXIT_UNWRITTEN, EXIT_UNUSABLE, EXIT_INTERRUPTED = 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    >>> main(["search", "valve", "--index", "/nowhere"])
    4
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    # our own reports say what matters of theirs
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        result, text = arguments.run(arguments)
    except WorkbenchError as error:
        return _fail(error, error.exit_code, debug=arguments.debug)
    except (ValueError, ImportError) as error:
        return _fail(error, EXIT_USAGE, debug=arguments.debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _unread()
    if getattr(arguments, "json", False):
        text = json.dumps(result, ensure_ascii=False)
    try:
        if text:
            print(text, flush=True)
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        _unread()
        print(f"workbench: stdout cannot be written to: {error.strerror}", file=sys.stderr)
        return EXIT_UNWRITTEN
    return int(result.get("exit_code", 0)) if arguments.verb in ("lab", "doctor") else 0


def _unread() -> int:
    """Who read our output has ended; nothing more is written, not even by the interpreter at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(prog="workbench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--version", action="version", version=f"workbench {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    demo = _verb(verbs, "demo", "everything once, on corpora/ and the pocket model", _demo)
    demo.add_argument(
        "--out", default="demo-report", help="folder of the report (default: %(default)s)"
    )

    lab = _verb(verbs, "lab", "JupyterLab on notebooks/", _lab, with_json=False)
    lab.add_argument("options", nargs=argparse.REMAINDER, help="passed to jupyter lab")

    index = _verb(
        verbs, "index", "read, chunk, embed and save documents; again: what changed alone", _index
    )
    index.add_argument("paths", nargs="*", metavar="PATH", help="files and folders")
    index.add_argument("--index", required=True, metavar="DIR", help="folder of the index")
    index.add_argument(
        "--encoder",
        help="hub id or folder of a sentence-transformers encoder (default: all-MiniLM-L6-v2)",
    )
    index.add_argument(
        "--structure",
        choices=["auto", "flat", "hnsw", "ivf-flat", "ivf-sq8", "ivf-rabitq"],
        default="auto",
        help="how vectors are searched; flat is exact (default: by their number)",
    )
    index.add_argument(
        "--keep-others",
        action="store_true",
        help="keep documents of the index whose ids are not among those read",
    )
    index.add_argument(
        "--delete", nargs="+", default=[], metavar="ID", help="delete documents, by their ids"
    )

    search = _verb(verbs, "search", "the passages for a question", _search)
    search.add_argument("question", metavar="Q")
    _add_index_options(search)
    search.add_argument(
        "--explain", action="store_true", help="where each score comes from, word by word"
    )

    ask = _verb(verbs, "ask", "a question answered with citations", _ask)
    ask.add_argument("question", metavar="Q")
    _add_index_options(ask)
    _add_generator_options(ask)
    ask.add_argument(
        "--style",
        choices=["quote", "free"],
        default="quote",
        help="verbatim sentence, or free text",
    )
    ask.add_argument(
        "--marks",
        choices=["sentence", "passage"],
        default="sentence",
        help="what a number stands for",
    )
    ask.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    ask.add_argument("--routing", metavar="FILE.npz", help="save which experts were used")
    ask.add_argument("--plot", metavar="FILE.png", help="draw which experts were used")

    route = _verb(verbs, "route", "which experts a text uses", _route)
    add_route_options(route)
    _add_generator_options(route)

    checkpoint = _verb(
        verbs, "checkpoint", "compressed weights: compress, decompress, verify, cache", _checkpoint,
        with_json=False,
    )  # fmt: skip
    add_checkpoint_verbs(checkpoint)

    summarize = _verb(verbs, "summarize", "one long document", _summarize)
    summarize.add_argument("file", metavar="FILE")
    _add_generator_options(summarize)
    summarize.add_argument("--strategy", choices=["auto", "full", "map-reduce"], default="auto")
    summarize.add_argument("--style", choices=["quote", "free"], default="quote")
    summarize.add_argument("--query", metavar="Q", help="what the summary is to be about")
    summarize.add_argument(
        "--sentences", type=int, default=8, metavar="N", help="at most (default: %(default)s)"
    )

    doctor = _verb(verbs, "doctor", "versions, devices, memory plan, self-test", _doctor)
    _add_generator_options(doctor)
    doctor.add_argument(
        "--card",
        type=_gigabytes,
        metavar="GB",
        help="plan for a GPU of so many GB that is not here, and load nothing",
    )
    return parser


def _gigabytes(text: str) -> float:
    found = float(text)
    if not 0 < found < 10**6:
        raise argparse.ArgumentTypeError(f"{text} is no size of a card in GB, such as 24")
    return found


def _verb(
    verbs: Any, name: str, what: str, run: Any, *, with_json: bool = True
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=what, description=what)
    verb.set_defaults(run=run)
    if with_json:
        verb.add_argument(
            "--json", action="store_true", help="one JSON object on stdout; an error goes to stderr"
        )
    verb.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    return verb


def _add_index_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--index", required=True, metavar="DIR", help="folder made by workbench index"
    )
    verb.add_argument("--encoder", help="the encoder the index was made with, if not the default")
    verb.add_argument("-k", type=int, default=5, help="number of passages (default: %(default)s)")
    verb.add_argument(
        "--mode", choices=["dense", "lexical", "hybrid"], help="default: as the index was built"
    )
    verb.add_argument(
        "--where",
        nargs="+",
        default=[],
        metavar="TERM",
        help="only passages that match: language=de, 'page>=3', 'document~manual/*', or a filter as JSON",
    )
    verb.add_argument(
        "--diversity",
        type=float,
        default=0.0,
        metavar="0…1",
        help="choose passages that differ from one another (default: %(default)s)",
    )
    verb.add_argument(
        "--fusion", choices=["score", "rank"], default="score", help="how the voters are fused"
    )
    verb.add_argument("--reranker", metavar="R", help="hub id or folder of a cross-encoder")


def _add_generator_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--generator", default="pocket", metavar="G", help="'pocket', a folder, or a hub id"
    )
    verb.add_argument(
        "--context", type=int, metavar="N", help="tokens (default: the original window)"
    )
    verb.add_argument(
        "--cache",
        choices=["reserved", "int8", "fp8", "offloaded"],
        default="reserved",
        help="how keys and values are kept: as computed, in 8 bits, or in host memory (default: %(default)s)",
    )
    verb.add_argument(
        "--quantization",
        choices=["8bit", "4bit"],
        help="hold linear layers and experts in fewer bits (default: as the checkpoint does)",
    )
    verb.add_argument(
        "--expert-cache",
        type=int,
        metavar="N",
        help="leave experts in host memory, N of each layer on the GPU (default: all on the GPU)",
    )


def _demo(arguments: argparse.Namespace) -> tuple[Result, str]:
    from workbench.demo import run_demo

    result = run_demo(arguments.out, say=lambda line: print(line, file=sys.stderr))
    text = (
        f"{result.in_top_k} of {result.questions} questions find their document in the first five passages; "
        f"{result.sentence_hits} quotes overlap the evidence; {result.abstained_rightly} of {result.unanswerable} "
        f"unanswerable questions were declined.\nReport: {result.report}"
    )
    return result.to_dict(), text


def _lab(arguments: argparse.Namespace) -> tuple[Result, str]:
    folder = Path(__file__).resolve().parent.parent / "notebooks"
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={folder.parent}",
        f"--LabApp.default_url=/lab/tree/{folder.name}",
        *arguments.options,
    ]
    return {"exit_code": subprocess.call(command)}, ""


def _index(arguments: argparse.Namespace) -> tuple[Result, str]:
    from workbench.corpus.readers import CorpusReader
    from workbench.retrieval.building import Recipe, delete_from_index, update_index
    from workbench.retrieval.encoders import load_encoder
    from workbench.retrieval.retrievers import open_retriever

    if bool(arguments.paths) == bool(arguments.delete):
        raise ValueError("give paths to index, or --delete with ids of documents")
    encoder = load_encoder(arguments.encoder)
    skipped, notices = [], []
    if arguments.delete:
        changes = delete_from_index(arguments.index, arguments.delete, encoder=encoder)
    else:
        reader = CorpusReader(arguments.paths)
        changes = update_index(
            arguments.index,
            reader,
            recipe=Recipe(encoder, index=arguments.structure),
            keep_others=arguments.keep_others,
            total=len(reader),
            progress=_progress,
        )
        skipped, notices = reader.skipped, reader.notices
    retriever = open_retriever(arguments.index, encoder=encoder)
    report = retriever.report
    result = {
        "index": str(Path(arguments.index).resolve()),
        "documents": len(retriever.documents),
        "chunks": len(retriever),
        "added": list(changes.added),
        "replaced": list(changes.replaced),
        "removed": list(changes.removed),
        "unchanged": len(changes.unchanged),
        "embedded": changes.embedded,
        "known": changes.known,
        "structure": report.to_dict() if report is not None else None,
        "skipped": [{"path": s.path, "reason": s.reason} for s in skipped],
        "notices": [{"path": n.path, "message": n.message} for n in notices],
    }
    sizes = f"{counted(len(retriever.documents), 'document')}, {counted(len(retriever), 'chunk')}"
    lines = [f"{sizes}: {result['index']}", str(changes).partition("(")[2].rstrip(")")]
    lines += [f"vectors: {report}"] if report is not None else []
    lines += [f"skipped {s.path!r}: {s.reason}" for s in skipped]
    lines += [f"note {n.path!r}: {n.message}" for n in notices]
    return result, "\n".join(lines)


def _search(arguments: argparse.Namespace) -> tuple[Result, str]:
    retriever = _open(arguments)
    hits = retriever.search(arguments.question, k=arguments.k, **_search_options(arguments))
    found, lines = [hit.to_dict() for hit in hits], []
    for place, h in enumerate(hits):
        votes = ", ".join(f"{v.retriever} {v.rank} ({v.score:.3f})" for v in h.votes)
        lines.append(
            f"{h.rank}. {h.chunk.document_id} {h.chunk.start}–{h.chunk.stop} (score {h.score:.4f}; ranks: {votes})\n"
            f"   {' '.join(h.chunk.text.split())}"
        )
        if arguments.explain:
            explanation = retriever.explain(h, arguments.question)
            found[place]["explanation"] = {
                n: v for n, v in explanation.to_dict().items() if n not in ("hit", "question")
            }
            lines += [f"  {line}" for line in str(explanation).splitlines()[1:]]
    return {"hits": found}, "\n".join(lines) or "no passage matches"


def _search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``search`` of a retriever is told beside the question and `k`."""
    from workbench.retrieval.filters import parsed_terms
    from workbench.retrieval.rerank import load_reranker
    from workbench.retrieval.retrievers import SearchOptions

    reranker = load_reranker(arguments.reranker) if arguments.reranker else None
    return {
        "mode": arguments.mode,
        "where": parsed_terms(arguments.where) if arguments.where else None,
        "options": SearchOptions(
            fusion=arguments.fusion, diversity=arguments.diversity, reranker=reranker
        ),
    }


def _ask(arguments: argparse.Namespace) -> tuple[Result, str]:
    from workbench.answer import ask

    retriever = _open(arguments)
    generator = _load(arguments)
    answer = ask(
        arguments.question,
        retriever=retriever,
        generator=generator,
        k=arguments.k,
        **_search_options(arguments),
        style=arguments.style,
        marks=arguments.marks,
        max_new_tokens=arguments.max_new_tokens,
    )
    if arguments.routing:
        _wrote(answer.routing.save(arguments.routing))
    if arguments.plot:
        _draw(answer.routing, arguments.plot)
    lines = [answer.text]
    lines += [
        f"  [{c.n}] {c.document_id} {c.start}–{c.stop} ({c.verdict})" for c in answer.citations
    ]
    if answer.abstained:
        lines.append(f"  ({answer.abstention_reason})")
    if answer.generation.warning:
        lines.append(f"  ({answer.generation.warning})")
    result = {**answer.to_dict(), "origin": generator.origin()}
    use = generator.expert_use
    if use is not None:
        result["expert_cache"] = use.to_dict()
        lines.append(f"  ({use})")
    return result, "\n".join(lines)


def _route(arguments: argparse.Namespace) -> tuple[Result, str]:
    from workbench.routing.export import check_suffix, export_trace

    for path in (arguments.plot, arguments.out):
        _check_folder(path)
    if arguments.plot and Path(arguments.plot).suffix.lower() != ".png":
        raise ValueError(f"--plot draws a PNG: {arguments.plot} must end with .png")
    if arguments.out:
        check_suffix(arguments.out)
    generator = None if is_trace(arguments.text) else _load(arguments)
    result, text, trace, comparison = route_report(
        arguments, generator, text_of=_text_or_file, open_index=lambda: _open(arguments)
    )
    if arguments.out:
        for made in export_trace(trace, arguments.out, segment=arguments.segment):
            _wrote(made)
    if arguments.plot:
        names = compared_names(arguments) if comparison is not None else None
        _draw(trace, arguments.plot, segment=arguments.segment, comparison=comparison, names=names)
    return result, text


def _checkpoint(arguments: argparse.Namespace) -> tuple[Result, str]:
    return run_checkpoint(arguments)


def _summarize(arguments: argparse.Namespace) -> tuple[Result, str]:
    from workbench.corpus.readers import read_document
    from workbench.summary import summarize

    document = read_document(arguments.file)
    summary = summarize(
        document,
        generator=_load(arguments),
        strategy=arguments.strategy,
        style=arguments.style,
        query=arguments.query,
        sentences=arguments.sentences,
    )
    lines = []
    for sentence in summary.sentences:
        places = ", ".join(f"{span.start}–{span.stop}" for span in sentence.sources) or "no source"
        lines.append(f"- {' '.join(sentence.text.split())} ({places})")
    return summary.to_dict(), "\n".join(lines)


def _doctor(arguments: argparse.Namespace) -> tuple[Result, str]:
    from workbench.doctor import examine

    report = examine(
        arguments.generator,
        context=arguments.context,
        cache=arguments.cache,
        quantization=arguments.quantization,
        expert_cache=arguments.expert_cache,
        card=arguments.card,
    )
    return {**report.to_dict(), "exit_code": EXIT_UNUSABLE if report.problems else 0}, str(report)


def _open(arguments: argparse.Namespace) -> Any:
    from workbench.retrieval.encoders import load_encoder
    from workbench.retrieval.retrievers import open_retriever

    encoder = load_encoder(arguments.encoder) if arguments.encoder else None
    return open_retriever(arguments.index, encoder=encoder)


def _load(arguments: argparse.Namespace) -> Any:
    from workbench.generation.loading import load_generator
    from workbench.generation.options import Decoding

    decoding = Decoding(cache=arguments.cache)
    return load_generator(
        arguments.generator,
        context=arguments.context,
        decoding=decoding,
        quantization=arguments.quantization,
        expert_cache=arguments.expert_cache,
    )


def _draw(
    trace: Any,
    path: str,
    *,
    segment: str | None = None,
    comparison: Any | None = None,
    names: tuple[str, str] | None = None,
) -> None:
    """The usage of a trace, or the difference that a comparison found, as a PNG."""
    from workbench.plots.differences import plot_usage_difference
    from workbench.plots.figures import png_bytes
    from workbench.plots.routing import plot_expert_usage
    from workbench.store import write_atomic

    _check_folder(path)
    if comparison is None:
        ax = plot_expert_usage(trace, segment=segment)
    else:
        x, y = names or ("X", "Y")
        ax = plot_usage_difference(comparison.contrast, x=x, y=y)
    write_atomic(Path(path), png_bytes(ax))
    _wrote(Path(path))


def _check_folder(path: str | None) -> None:
    """Refuse a file that cannot be written before the work is done."""
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise ValueError(f"there is no folder {Path(path).parent} to write {Path(path).name} into")


def _wrote(path: Path) -> None:
    print(f"wrote {path}", file=sys.stderr)


def _text_or_file(argument: str) -> str:
    try:
        is_file, is_folder = Path(argument).is_file(), bool(argument) and Path(argument).is_dir()
    except (OSError, ValueError):  # longer than a path may be, or with a zero byte
        is_file = is_folder = False
    if is_folder:
        raise InputError(f"{argument} is a folder: name one of its files")
    if not is_file and re.fullmatch(r"\S+\.[A-Za-z]{1,5}", argument):
        raise InputError(f"there is no file {argument!r}; a text to route has more than one word")
    if not is_file:
        return argument
    from workbench.corpus.readers import read_document

    text: str = read_document(argument).text
    return text


def _progress(step: Any) -> None:
    if step.done == step.total:
        print(f"{step.stage}: {step.done} of {step.total}", file=sys.stderr)


def _fail(error: BaseException, code: int, *, debug: bool) -> int:
    if debug:
        raise error
    print(f"workbench: {' '.join(str(error).split())}", file=sys.stderr)
    return code
