"""Folders of a batch have unique names; the ledger is a table of everything that happened."""

from pathlib import Path

import pytest

from stainbridge.batch import Entry, folder_names, run_batch, write_ledger
from stainbridge.config import RunConfig
from stainbridge.errors import ConfigError


@pytest.mark.parametrize(
    ("pictures", "names"),
    [
        (["a/x.png", "a/y.tif"], ["x", "y"]),
        (["a/x.png", "a/x.tif", "a/y.png"], ["x.png", "x.tif", "y"]),
        (["a/x.png", "b/x.png"], ["a__x.png", "b__x.png"]),
        (["a/x.png", "a/X.png"], ["0001__a__x.png", "0002__a__X.png"]),
        (["p/a/x.png", "q/a/x.png"], ["0001__a__x.png", "0002__a__x.png"]),
    ],
)
def test_each_picture_has_a_folder_of_its_own(pictures, names):
    assert folder_names([Path(picture) for picture in pictures]) == names


def test_the_ledger_keeps_commas_and_line_breaks(tmp_path):
    path = write_ledger([Entry("a,b.png", "a,b", "failed", error="first\nsecond")], tmp_path / "new")
    assert path.read_text().splitlines()[0] == "picture,folder,status,nuclei,positive,percent_positive,seconds,error"
    assert '"a,b.png","a,b",failed,,,,0.0,"first\nsecond"' in path.read_text()


def test_an_unknown_way_with_existing_results_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be 'refuse', 'overwrite' or 'resume'"):
        next(run_batch([], tmp_path, RunConfig(), existing="ignore"))
