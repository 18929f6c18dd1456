import json

import pytest

from workbench.corpus.notebook_text import extract_notebook
from workbench.errors import InputError


def notebook(*cells: dict, **fields) -> bytes:
    facts = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"language": "python"}}}
    return json.dumps(
        {**facts, "cells": [{"metadata": {}, **cell} for cell in cells], **fields}
    ).encode()


def markdown(*source: str) -> dict:
    return {"cell_type": "markdown", "source": list(source)}


def code(source: str, *outputs: dict) -> dict:
    return {
        "cell_type": "code",
        "source": source,
        "outputs": list(outputs),
        "execution_count": None,
    }


def test_cells_and_their_printed_output_stand_in_order():
    data = notebook(
        markdown("# Pump\n", "It failed.\n"),
        code(
            "x = 1\nprint(x)\n",
            {"output_type": "stream", "name": "stdout", "text": ["1\n", "\x1b[31m2\x1b[0m\n"]},
            {"output_type": "execute_result", "data": {"text/plain": "3", "text/html": "<b>3</b>"}},
            {"output_type": "display_data", "data": {"image/png": "AAAA"}},
            {
                "output_type": "display_data",
                "data": {"text/markdown": "*four*", "text/plain": "<Markdown>"},
            },
            {
                "output_type": "error",
                "ename": "ValueError",
                "evalue": "five",
                "traceback": ["long"],
            },
        ),
        {"cell_type": "raw", "source": "six"},
        code(" "),
    )
    assert extract_notebook(data).text.split("\n\n") == [
        "# Pump\nIt failed.",
        "```python\nx = 1\nprint(x)\n```",
        "```\n1\n2\n```",
        "```\n3\n```",
        "*four*",
        "```\nValueError: five\n```",
        "six",
    ]


def test_headings_of_markdown_cells_are_sections_and_comments_in_code_are_not():
    data = notebook(
        markdown("# A"),
        code("# no\nx = '''\n# no\n'''"),
        markdown("~~~\n# no"),
        markdown("B\n---\ntext"),
    )
    extracted = extract_notebook(data)
    found = [(s.title, s.level, extracted.text[s.start :][:4]) for s in extracted.sections]
    assert found == [("A", 1, "# A\n"), ("B", 2, "B\n--")]


def test_code_that_holds_a_fence_gets_a_longer_one():
    assert (
        extract_notebook(notebook(code("'''\n```\n'''"))).text == "````python\n'''\n```\n'''\n````"
    )


def test_a_notebook_of_format_3_is_read():
    cells = [
        {"cell_type": "heading", "level": 2, "metadata": {}, "source": "Pump"},
        {
            "cell_type": "code",
            "input": "x",
            "language": "python",
            "metadata": {},
            "outputs": [{"output_type": "pyout", "prompt_number": 1, "text": "1", "metadata": {}}],
        },
    ]
    facts = {
        "nbformat": 3,
        "nbformat_minor": 0,
        "metadata": {"name": ""},
        "worksheets": [{"metadata": {}, "cells": cells}],
    }
    extracted = extract_notebook(json.dumps(facts).encode())
    assert extracted.text == "## Pump\n\n```\nx\n```\n\n```\n1\n```"
    assert [s.title for s in extracted.sections] == ["Pump"]


def test_half_a_sign_in_json_becomes_a_replacement_character():
    data = notebook(markdown("X")).replace(b'"X"', b'"\\ud83d \\ud83d\\ude00"')
    assert extract_notebook(data).text == "\ufffd 😀"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"# no json", "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "as its format says"),
        (b"5", "as its format says"),
        (b"null", "as its format says"),
        (b'{"nbformat": 99}', "as its format says"),
        (b'{"nbformat": 4}', "as its format says"),
        (b'{"nbformat": 4, "metadata": {}, "cells": [1]}', "as its format says"),
        (notebook({"cell_type": "code"}), "as its format says"),
        (notebook({"cell_type": "markdown", "source": 5}), "as its format says"),
        (notebook(code("x", {"output_type": "stream"})), "as its format says"),
    ],
)
def test_what_is_no_notebook_is_an_input_error_of_one_line(data, reason):
    with pytest.raises(InputError, match=f"^broken notebook: .*{reason}") as raised:
        extract_notebook(data)
    assert "\n" not in str(raised.value)
