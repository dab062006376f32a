"""Files and folders that are written by several processes at once."""

from pathlib import Path

import pytest

from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import read_json, replacing_folder, write_text


def test_of_two_that_write_the_same_folder_one_stays_whole(tmp_path: Path):
    folder = tmp_path / "parent" / "made"
    for names in (("first", "second"), ("third", "fourth")):  # the second time it replaces one
        with replacing_folder(folder) as one, replacing_folder(folder) as other:
            for place, name in zip((one, other), names, strict=True):
                write_text(place / "name", name)
                write_text(place / f"of the {name}", "")
        name = (folder / "name").read_text()
        assert name in names
        assert {file.name for file in folder.iterdir()} == {"name", f"of the {name}"}
    assert [path.name for path in folder.parent.iterdir()] == ["made"]


def test_a_folder_that_another_process_puts_there_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "made"
    rename = Path.rename

    def another_is_faster(path: Path, target: Path) -> Path:
        if target == folder and not folder.exists():
            write_text_into(folder, "another's")
        return rename(path, target)

    def write_text_into(place: Path, name: str) -> None:
        place.mkdir()
        write_text(place / "name", name)

    monkeypatch.setattr(Path, "rename", another_is_faster)
    with replacing_folder(folder) as beside:
        write_text(beside / "name", "ours")
    assert (folder / "name").read_text() == "another's"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_dead_process_left_is_in_no_ones_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.getpid", lambda: 7)  # as in every container
    folder, file = tmp_path / "made", tmp_path / "file"
    dead = replacing_folder(folder)
    left = dead.__enter__()
    with replacing_folder(folder) as beside:
        assert beside != left
        write_text(beside / "name", "ours")
    write_text(file, "text")
    assert (folder / "name").exists()
    assert left.is_dir()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe{}", b"[" * 100_000])
def test_json_that_is_damaged_names_the_file_and_the_way_out(tmp_path: Path, content: bytes):
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_json(path, "Delete it.")
    assert str(caught.value).startswith(f"{path} cannot be read: ")
    assert str(caught.value).endswith(". Delete it.")
