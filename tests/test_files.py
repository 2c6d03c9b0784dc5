"""A file is written whole or not at all."""

import os
from pathlib import Path

import pytest

from polyhead.files import check_writable, replacing, write_whole


def test_a_file_in_a_folder_that_is_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["c.txt"]


def test_the_old_file_stays_where_the_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.txt"
    write_whole(path, b"old")

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:1])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, b"new")


# --- the same for whoever writes by name


def test_the_file_appears_when_the_block_is_done_and_in_a_folder_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    with replacing(path) as beside:
        assert beside.parent == path.parent, "on another file system it could not be moved in one step"
        beside.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_until_then_the_old_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with replacing(path) as beside:
            beside.write_bytes(b"new")
            assert path.read_bytes() == b"old"
        assert reader.read() == b"old", "who has opened it keeps what was there"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt("stopped")], ids=repr)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_block_that_fails_leaves_what_was_there(
    error: BaseException, begun: bool, old: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "c.txt"
    if old is not None:
        path.write_bytes(old)

    def write() -> None:
        with replacing(path) as beside:
            if begun:
                beside.write_bytes(b"ne")
            raise error

    with pytest.raises(type(error), match=str(error)):
        write()
    assert list(tmp_path.iterdir()) == ([] if old is None else [path])
    assert old is None or path.read_bytes() == old


def test_a_block_that_writes_nothing_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match="partial"), replacing(path):
        pass
    assert path.read_bytes() == b"old"


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    link.symlink_to(target)
    with replacing(link) as beside:
        beside.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_what_a_run_that_was_killed_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    with replacing(path) as beside:
        name = beside
        beside.write_bytes(b"first")
    name.write_bytes(b"half of something longer")
    with replacing(path) as beside:
        beside.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(IsADirectoryError), replacing(folder) as beside:
        beside.write_bytes(b"new")
    assert list(tmp_path.iterdir()) == [folder]


def test_two_files_side_by_side_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "b") as other:
        one.write_bytes(b"a")
        other.write_bytes(b"b")
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"a", b"b"]


def test_two_who_write_one_file_at_once_each_write_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    with replacing(path) as one:
        one.write_bytes(b"one")
        with replacing(path) as other:
            other.write_bytes(b"another")
        assert path.read_bytes() == b"another"
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.txt"
    check_writable(path)
    assert list(path.parent.iterdir()) == []
    path.write_text("old", encoding="utf-8")
    check_writable(path)
    assert path.read_text(encoding="utf-8") == "old"
    check_writable(Path("/dev/null"))


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("file/c.txt", NotADirectoryError, "file is no folder"),
        ("file/new/c.txt", NotADirectoryError, "file is no folder"),
        ("", IsADirectoryError, "Is a directory"),
    ],
)
def test_what_cannot_be_written_is_said_before(tmp_path: Path, name: str, error: type[OSError], match: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(error, match=match):
        check_writable(tmp_path / name)
