"""Files are whole or not there."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from tinyssl.checkpoint import load_checkpoint, save_checkpoint
from tinyssl.errors import JobError, UsageError
from tinyssl.files import (
    atomic,
    csv_text,
    json_text,
    refuse_other_table,
    refuse_unmakeable,
    typed,
    writable,
    write_text,
)


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot write .*file: No such file"):
        write_text(tmp_path / "nope" / "file", "x")


def test_json_has_a_row_of_a_matrix_on_a_line() -> None:
    names = ["[", "]", "a\n[\n1\n]", '"[\\"', "[\n1\n]"]
    value = {"matrix": [[1, 2], [3, 4]], "names": names, "one": [[], [None, 0.5], {"a": [True]}]}
    text = json_text(value)
    assert json.loads(text) == value
    assert '"matrix": [\n  [1, 2],\n  [3, 4]\n ]' in text
    assert "  [null, 0.5],\n" in text


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_checkpoints_travel(tmp_path: Path) -> None:
    state = {"a": torch.arange(3), "b": {"c": [1.5, "x"]}}
    save_checkpoint(tmp_path / "last.pt", state)
    found = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(found["a"], state["a"])
    assert found["b"] == state["b"]


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/tinyssl_was_here",)


@pytest.mark.parametrize("case", ["missing", "garbage", "half", "hostile", "no dict", "other"])
def test_wrong_checkpoints_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    if case == "garbage":
        path.write_bytes(b"garbage")
    elif case == "half":
        save_checkpoint(path, {"a": torch.zeros(1000)})
        path.write_bytes(path.read_bytes()[:1000])
    elif case == "hostile":
        torch.save({"format": 1, "a": Hostile()}, path)
    elif case == "no dict":
        torch.save([1, 2], path)
    elif case == "other":
        torch.save({"format": 7}, path)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/tinyssl_was_here").exists()


def test_what_may_be_replaced(tmp_path: Path) -> None:
    labels, page = tmp_path / "labels.csv", tmp_path / "page.HTML"
    labels.write_text("mine")
    page.write_text("old")
    (tmp_path / "link.csv").symlink_to(labels)
    os.mkfifo(tmp_path / "pipe.html")
    assert writable(tmp_path / "new.json", ".html") == tmp_path / "new.json"
    assert writable(page, ".html", [labels]) == page
    with pytest.raises(UsageError, match=r"does not end in .html; name another file"):
        writable(labels, ".html")
    with pytest.raises(UsageError, match="is read here and would be lost"):
        writable(tmp_path / "link.csv", ".csv", [labels])
    with pytest.raises(UsageError, match="is no plain file"):
        writable(tmp_path / "pipe.html", ".html")
    with pytest.raises(JobError, match="it is no plain file"):
        write_text(tmp_path / "pipe.html", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe.html").stat().st_mode)


def test_a_folder_that_takes_no_files_is_told_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root writes everywhere")
    with pytest.raises(UsageError, match="no file can be written to that folder"):
        writable(tmp_path / "eval.json", ".json")


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    refuse_unmakeable(tmp_path)
    refuse_unmakeable(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*file/run: .*file is no folder; name another"):
        refuse_unmakeable(tmp_path / "file" / "run")
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root writes everywhere")
    with pytest.raises(UsageError, match="nothing can be written to"):
        refuse_unmakeable(tmp_path / "a" / "b")


def test_a_list_with_notes_is_not_ours_to_replace(tmp_path: Path) -> None:
    path, columns = tmp_path / "list.csv", ("group", "path")
    refuse_other_table(path, columns)
    write_text(path, csv_text([columns, (1, "a.png")]))
    refuse_other_table(path, columns)
    path.write_text("group,path\n1,a.png\n", encoding="utf-8-sig")  # saved by a spreadsheet
    refuse_other_table(path, ("other",), columns)
    for first in ("group,path,keep", "my notes", ""):
        path.write_text(f"{first}\n1,a.png,yes\n")
        with pytest.raises(UsageError, match=r"would be lost: its first line is not group,path;"):
            refuse_other_table(path, columns)


def test_what_is_typed_suits_the_shell() -> None:
    assert [typed("runs/a b", windows=False), typed("~/run", windows=False)] == [
        "'runs/a b'",
        "'~/run'",
    ]
    plain, spaced = typed(r"C:\runs\mine", windows=True), typed(r"runs\a b", windows=True)
    assert [plain, spaced] == [r"C:\runs\mine", r'"runs\a b"']
