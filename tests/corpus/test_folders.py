import os
import socket
from pathlib import Path

import pytest

from workbench.corpus.folders import find_files
from workbench.errors import InputError


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")


def ids(*paths: Path) -> list[str]:
    return [file.id for file in find_files(paths).files]


def reasons(*paths: Path) -> dict[str, str]:
    return {skipped.path: skipped.reason for skipped in find_files(paths).skipped}


def test_every_file_below_a_folder_is_found_in_the_order_of_ids(tmp_path):
    names = ["b.md", "a/z.txt", "a/b/c.txt", "a-b.txt", "B.md", "ä.txt", "日本/本.md"]
    write(tmp_path, *names)
    assert ids(tmp_path) == sorted(names)
    assert all(file.path == tmp_path / file.id for file in find_files([tmp_path]).files)


def test_hidden_files_and_folders_are_left_out_without_a_word(tmp_path):
    write(tmp_path, "a.md", ".hidden.md", ".git/config.txt", "b/.x/c.md")
    assert ids(tmp_path) == ["a.md"]
    assert reasons(tmp_path) == {}


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path):
    write(tmp_path, ".notes/a.md")
    assert ids(tmp_path / ".notes") == ["a.md"]


def test_a_single_file_has_its_name_for_an_id(tmp_path):
    write(tmp_path, "a/b.md")
    found = find_files([tmp_path / "a/b.md"])
    assert ([file.id for file in found.files], found.root) == (["b.md"], tmp_path / "a")


def test_ids_of_several_paths_are_relative_to_the_folder_around_them(tmp_path):
    write(tmp_path, "a/README.md", "b/README.md", "c.md", "d.md")
    assert ids(tmp_path / "b", tmp_path / "a", tmp_path / "c.md") == [
        "a/README.md",
        "b/README.md",
        "c.md",
    ]


def test_a_file_asked_for_twice_is_found_once(tmp_path):
    write(tmp_path, "a.md", "b/c.md")
    assert ids(tmp_path, tmp_path / "b", tmp_path / "a.md") == ["a.md", "b/c.md"]


def test_a_relative_path_is_taken_from_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path, "a/b.md")
    monkeypatch.chdir(tmp_path / "a")
    assert ids(Path()) == ids(Path("../a")) == ["b.md"]


def test_a_path_that_does_not_exist_is_an_error_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file or folder") as raised:
        find_files([tmp_path / "a\nb"])
    assert "\n" not in str(raised.value)


def test_no_path_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="no path"):
        find_files([])


class TestIgnoreFile:
    def test_patterns_leave_files_out_and_are_named(self, tmp_path):
        write(tmp_path, "a.md", "questions.jsonl", "x/questions.jsonl", "x/b.md")
        (tmp_path / ".workbenchignore").write_text("# comment\n\nquestions.jsonl\n")
        assert ids(tmp_path) == ["a.md", "x/b.md"]
        reason = ".workbenchignore: pattern 'questions.jsonl'"
        assert reasons(tmp_path) == {"questions.jsonl": reason, "x/questions.jsonl": reason}

    def test_a_folder_is_left_out_whole_and_told_once(self, tmp_path):
        write(tmp_path, "drafts/a.md", "drafts/b.md", "x/drafts", "c.md")
        (tmp_path / ".workbenchignore").write_text("drafts/\n")
        assert ids(tmp_path) == ["c.md", "x/drafts"]
        assert reasons(tmp_path) == {"drafts": ".workbenchignore: pattern 'drafts/'"}

    @pytest.mark.parametrize(
        ("patterns", "left"),
        [
            ("*.txt", ["a.md", "x/b.md"]),
            ("/a.*", ["b.txt", "x/a.txt", "x/b.md"]),
            ("x/*.txt", ["a.md", "b.txt", "x/b.md"]),
            ("?.txt\n!b.txt", ["a.md", "b.txt", "x/b.md"]),
            ("[ab].md", ["b.txt", "x/a.txt"]),
            ("**/a.txt", ["a.md", "b.txt", "x/b.md"]),
            ("x/**", ["a.md", "b.txt"]),
            ("\\#a\n  \n#b.txt", ["a.md", "b.txt", "x/a.txt", "x/b.md"]),
            ("*.txt\r\n*.pdf\r\n", ["a.md", "x/b.md"]),
        ],
    )
    def test_patterns_are_those_of_git(self, tmp_path, patterns, left):
        write(tmp_path, "a.md", "b.txt", "x/a.txt", "x/b.md")
        (tmp_path / ".workbenchignore").write_bytes(b"\xef\xbb\xbf" + patterns.encode())
        assert ids(tmp_path) == left

    def test_a_deeper_file_has_the_last_word_and_counts_from_its_folder(self, tmp_path):
        write(tmp_path, "a.txt", "x/a.txt", "x/y/a.txt", "x/y/b.txt")
        (tmp_path / ".workbenchignore").write_text("*.txt\n")
        (tmp_path / "x/.workbenchignore").write_text("!a.txt\n/y/b.txt\n")
        assert ids(tmp_path) == ["x/a.txt", "x/y/a.txt"]
        assert reasons(tmp_path) == {
            "a.txt": ".workbenchignore: pattern '*.txt'",
            "x/y/b.txt": "x/.workbenchignore: pattern '/y/b.txt'",
        }

    def test_a_file_asked_for_by_name_is_read_all_the_same(self, tmp_path):
        write(tmp_path, "a.md", "questions.jsonl")
        (tmp_path / ".workbenchignore").write_text("questions.jsonl\n")
        found = find_files([tmp_path, tmp_path / "questions.jsonl"])
        assert [file.id for file in found.files] == ["a.md", "questions.jsonl"]
        assert found.skipped == ()

    @pytest.mark.parametrize(
        ("data", "said"),
        [(b"*.txt\n!\n", r"\.workbenchignore:2: '!' is no pattern"), (b"\xff\n", "not UTF-8")],
    )
    def test_patterns_that_cannot_be_read_stop_the_run(self, tmp_path, data, said):
        write(tmp_path, "a.md")
        (tmp_path / ".workbenchignore").write_bytes(data)
        with pytest.raises(InputError, match=said):
            find_files([tmp_path])

    def test_patterns_from_outside_or_from_a_folder_stop_the_run(self, tmp_path):
        write(tmp_path, "outside", "x/a.md", "y/a.md")
        (tmp_path / "x/.workbenchignore").symlink_to(tmp_path / "outside")
        (tmp_path / "y/.workbenchignore").mkdir()
        for folder in ("x", "y"):
            with pytest.raises(InputError, match="not a file of this folder"):
                find_files([tmp_path / folder])


class TestLinks:
    def test_a_link_out_of_the_folder_is_not_followed(self, tmp_path):
        write(tmp_path, "outside/secret.md", "in/a.md")
        (tmp_path / "in/file.md").symlink_to(tmp_path / "outside/secret.md")
        (tmp_path / "in/folder").symlink_to(tmp_path / "outside")
        (tmp_path / "in/up.md").symlink_to("../outside/secret.md")
        assert ids(tmp_path / "in") == ["a.md"]
        reason = "a link out of the folder read; not followed"
        assert reasons(tmp_path / "in") == {"file.md": reason, "folder": reason, "up.md": reason}

    def test_a_folder_whose_name_only_begins_alike_is_outside(self, tmp_path):
        write(tmp_path, "in/a.md", "in-other/secret.md")
        (tmp_path / "in/link.md").symlink_to("../in-other/secret.md")
        assert ids(tmp_path / "in") == ["a.md"]

    def test_a_link_to_a_file_within_is_read_under_its_own_name(self, tmp_path):
        write(tmp_path, "a/v2.md")
        (tmp_path / "latest.md").symlink_to("a/v2.md")
        assert ids(tmp_path) == ["a/v2.md", "latest.md"]

    def test_circles_and_links_to_nothing_are_told(self, tmp_path):
        write(tmp_path, "a/b.md")
        (tmp_path / "a/up").symlink_to("..")
        (tmp_path / "one").symlink_to("two")
        (tmp_path / "two").symlink_to("one")
        (tmp_path / "gone.md").symlink_to("nowhere")
        assert ids(tmp_path) == ["a/b.md"]
        assert reasons(tmp_path) == {
            "a/up": "a link to a folder; its files are read where they lie",
            "gone.md": "a link to nothing",
            "one": "a link that leads in a circle",
            "two": "a link that leads in a circle",
        }

    def test_a_folder_asked_for_may_itself_be_a_link(self, tmp_path):
        write(tmp_path, "real/a.md", "real/b.md")
        (tmp_path / "real/link.md").symlink_to("a.md")
        (tmp_path / "alias").symlink_to("real")
        assert ids(tmp_path / "alias") == ["a.md", "b.md", "link.md"]

    def test_hard_links_are_files_like_any_other(self, tmp_path):
        write(tmp_path, "a.md")
        os.link(tmp_path / "a.md", tmp_path / "b.md")
        assert ids(tmp_path) == ["a.md", "b.md"]


def test_pipes_and_sockets_are_told_and_not_opened(tmp_path):
    write(tmp_path, "a.md")
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "link.md").symlink_to("pipe.md")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.md"))
        assert ids(tmp_path) == ["a.md"]
        assert reasons(tmp_path) == {
            "pipe.md": "a named pipe, not a file; not opened",
            "link.md": "a named pipe, not a file; not opened",
            "socket.md": "a socket, not a file; not opened",
        }


@pytest.mark.parametrize(
    ("name", "said", "path"),
    [
        (b"a\nb.md", r"its name 'a\nb.md' holds a control character; rename it", "a\nb.md"),
        (
            b"a\x1b[2J.md",
            r"its name 'a\x1b[2J.md' holds a control character; rename it",
            "a\x1b[2J.md",
        ),
        (b"a\xff.md", r"its name 'a\udcff.md' is not UTF-8; rename it", r"a\xff.md"),
    ],
)
def test_a_name_that_could_not_be_shown_in_one_line_is_told(tmp_path, name, said, path):
    write(tmp_path, "a.md")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("text")
    (skipped,) = find_files([tmp_path]).skipped
    assert (skipped.path, skipped.reason) == (path, said)
    assert "\n" not in str(skipped)
    str(skipped).encode()
    assert ids(tmp_path) == ["a.md"]


def test_unusual_names_that_show_are_kept(tmp_path):
    names = ["a b.md", "a\u202fb.md", "👩‍👩‍👧.md", "'q\".md", "%2e.md", "-x.md", "a,b;c.md"]
    write(tmp_path, *names)
    assert ids(tmp_path) == sorted(names)


def test_a_folder_that_may_not_be_listed_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    write(tmp_path, "a.md", "b/c.md")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert ids(tmp_path) == ["a.md"]
    assert reasons(tmp_path) == {"b": "the folder cannot be listed: permission denied"}
