"""The direction of imports: rooms import only what stands before them on the way of a question."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "workbench"
# The way of a question; a room may import from those in earlier lines and from itself.
ORDER = [
    "errors markup cancel store",
    "corpus",
    "retrieval",
    "routing",
    "checkpoints",
    "generation",
    "grounding",
    "answer",
    "summary",
    "evaluation",
    "effects",
    "pocket",
    "interop",
    "jobs",
    "plots",
    "widgets",
    "report",
    "demo",
    "doctor",
    "cli_route cli_checkpoint",
    "cli",
    "__main__",
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms.split()}
TORCH = (
    "retrieval/encoders.py retrieval/rerank.py retrieval/model_folders.py routing/capture.py "
    "routing/intervene.py checkpoints/finding.py generation/ grounding/support.py grounding/attribution.py pocket/"
).split()
# library: the only places that may import it
OWNERS = {
    "matplotlib": ["plots/"],
    "ipywidgets": ["widgets/"],
    "anywidget": ["widgets/"],
    "faiss": ["retrieval/index"],
    "langchain_core": ["interop/"],
    "zstandard": ["checkpoints/"],
    "torch": TORCH,
    "transformers": TORCH,
    "sentence_transformers": TORCH,
}
STANDARD_ONLY = ["errors.py", "markup.py", "cancel.py", "store.py"]
NUMPY_ONLY = [
    f"routing/{name}.py"
    for name in (
        "arrays",
        "trace",
        "statistics",
        "specialization",
        "pairs",
        "agreement",
        "contrasts",
        "margins",
        "compare",
        "contributions",
        "groups",
        "vocabulary",
        "drift",
        "distances",
        "export",
        "page",
    )
]
MAKES_TABLES = {"numpy", "pandas"}  # the second within functions, for import workbench stays light


def imported(tree: ast.AST) -> set[str]:
    """Absolute names of every module imported anywhere in a file, ``if TYPE_CHECKING`` apart."""
    names: set[str] = set()
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.add("." * node.level)
            elif node.module == "workbench":
                names |= {f"workbench.{alias.name}" for alias in node.names}
            else:
                names.add(node.module or "")
    return names


def violations(path: str, source: str) -> list[str]:
    """What a file at `path` (relative to the package) imports against the rules."""
    found = []
    names = imported(ast.parse(source))
    room = path.split("/")[0].removesuffix(".py")
    for name in sorted(names):
        top = name.split(".")[0]
        if name.startswith("."):
            found.append(f"{path}: relative import")
        elif top == "workbench":
            other = name.split(".")[1] if "." in name else "__init__"
            if other != room and RANK.get(other, -1) > RANK.get(room, -1):
                found.append(f"{path} imports {name}, which comes later on the way")
            same_step = RANK.get(other) == RANK.get(room) and other != room
            if same_step and room in RANK and path not in STANDARD_ONLY:
                found.append(f"{path} imports {name}, which stands beside it")
        elif top in OWNERS and not any(path.startswith(owner) for owner in OWNERS[top]):
            found.append(f"{path} imports {top}, which belongs to {OWNERS[top]}")
        elif path in STANDARD_ONLY and top not in sys.stdlib_module_names:
            found.append(f"{path} imports {top}, which is not in the standard library")
        elif path in NUMPY_ONLY and top not in sys.stdlib_module_names and top not in MAKES_TABLES:
            found.append(f"{path} imports {top}, it may use NumPy alone")
    at_import = {n for node in ast.parse(source).body for n in imported_by(node)}
    if path in NUMPY_ONLY and "pandas" in at_import:
        found.append(f"{path} imports pandas when it is imported; do so in the function")
    return found


def imported_by(node: ast.stmt) -> set[str]:
    """Modules that a statement at the top of a file imports."""
    return imported(node) if isinstance(node, ast.Import | ast.ImportFrom) else set()


FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_imports_point_back_up_the_way(path):
    assert violations(path, (PACKAGE / path).read_text("utf-8")) == []


def test_every_room_has_its_place():
    rooms = {path.split("/")[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert rooms <= RANK.keys()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("corpus/chunks.py", "from workbench.retrieval.index import VectorIndex"),
        ("retrieval/retrievers.py", "def f():\n    from workbench import generation"),
        ("answer.py", "import torch"),
        ("answer.py", "from transformers import AutoModel"),
        ("widgets/ask.py", "import matplotlib.pyplot"),
        ("retrieval/retrievers.py", "import faiss"),
        ("routing/trace.py", "import pandas"),
        ("store.py", "import numpy"),
        ("corpus/readers.py", "from . import chunks"),
        ("plots/routing.py", "import workbench.cli"),
    ],
)
def test_each_rule_fails_when_it_is_broken(path, source):
    assert violations(path, source)


def test_what_is_allowed_is_allowed():
    assert (
        violations(
            "generation/phi.py", "import torch\nfrom workbench.routing.trace import RoutingTrace"
        )
        == []
    )
    assert violations("answer.py", "if TYPE_CHECKING:\n    import torch") == []


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; started = time.process_time(); import workbench; "
        "seconds = time.process_time() - started; "
        "heavy = {'torch', 'transformers', 'faiss', 'matplotlib', 'ipywidgets', 'numpy', 'pandas', 'langchain_core'};"
        "print(sorted(heavy & sys.modules.keys()), seconds < 0.2)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] True"


def test_every_public_name_can_be_fetched_and_there_are_few():
    import workbench

    assert len(workbench.__all__) <= 30
    for name in workbench.__all__:
        assert getattr(workbench, name) is not None
    assert set(workbench.__all__) <= set(dir(workbench))
