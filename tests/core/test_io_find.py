"""Finding pictures in files, folders and patterns."""

from pathlib import Path

import pytest

from stainbridge.errors import NoPictures
from stainbridge.io import find_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.TIF", "c.svs", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.jpg").touch()
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_folder_gives_its_own_pictures_sorted(folder: Path) -> None:
    assert names(find_pictures([folder])) == ["a.TIF", "b.png", "c.svs"]


def test_patterns_are_expanded_also_into_folders(folder: Path) -> None:
    assert names(find_pictures([f"{folder}/*.png"])) == ["b.png"]
    assert names(find_pictures([f"{folder}/**/*.jpg"])) == ["d.jpg"]


def test_each_picture_comes_once_in_the_order_given(folder: Path) -> None:
    given = [folder / "c.svs", folder, f"{folder}/deeper/../*.png", folder / "deeper" / "d.jpg"]
    assert names(find_pictures(given)) == ["c.svs", "a.TIF", "b.png", "d.jpg"]


def test_file_with_the_signs_of_a_pattern_in_its_name_is_a_file(folder: Path) -> None:
    (folder / "slide[1].png").touch()
    assert names(find_pictures([folder / "slide[1].png"])) == ["slide[1].png"]


def test_named_file_is_left_to_the_reader_to_judge(folder: Path) -> None:
    assert names(find_pictures([folder / "notes.txt", folder / "gone.png"])) == ["notes.txt", "gone.png"]


def test_pictures_of_our_own_results_are_no_inputs(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    for name in ("overlay.png", "labels.ome.tif", "summary.json", "nuclei.parquet"):
        (out / name).touch()
    assert names(find_pictures([f"{folder}/**/*.png"])) == ["b.png"]
    with pytest.raises(NoPictures):
        find_pictures([out])


def test_nothing_found_says_where_and_what_was_looked_for(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(
        NoPictures, match=rf"The folder '{empty}' holds no picture \(0 other entries\).\nLooked for .png"
    ):
        find_pictures([folder, empty])
    with pytest.raises(NoPictures, match=r"The pattern '.*\*\.gif' holds no picture"):
        find_pictures([f"{folder}/*.gif"])
    with pytest.raises(NoPictures, match="No picture was given"):
        find_pictures([])
