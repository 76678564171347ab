"""A suite says what is wrong with it before anything runs."""

import pytest

from stainbridge import Suite
from stainbridge.errors import ConfigError

MINIMAL = {"name": "s", "datasets": ["deepliif"], "translators": ["identity"], "segmenters": ["baseline"]}


def write(folder, text):
    path = folder / "suite.toml"
    path.write_text(text)
    return path


def test_an_unknown_key_names_the_nearest(tmp_path):
    path = write(tmp_path, 'name = "s"\ndatasets = ["d"]\ntranslators = ["identity"]\nsegmentors = ["baseline"]\n')
    with pytest.raises(ConfigError, match=r"suite\.toml: (.|\n)*unknown key 'segmentors'\. Did you mean 'segmenters'"):
        Suite.load(path)


def test_an_unknown_key_of_a_table_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown key 'tile' in run\. Did you mean 'tile_px'"):
        Suite(**MINIMAL, run={"tile": 3})


def test_nothing_is_compared_with_itself():
    with pytest.raises(ConfigError, match=r"translators holds .*identity.* twice"):
        Suite(**{**MINIMAL, "translators": ["identity", {"name": "identity"}]})


def test_a_table_of_a_data_set_needs_a_name():
    with pytest.raises(ConfigError, match="must each have a name"):
        Suite(**{**MINIMAL, "datasets": [{"layout": "folder"}]})


def test_paths_are_relative_to_the_suite(tmp_path):
    text = 'name = "s"\ntranslators = ["identity"]\nsegmenters = ["baseline"]\n[[datasets]]\nname = "mine"\npath = "pictures"\n'
    suite = Suite.load(write(tmp_path, text))
    assert suite.datasets[0]["path"] == str(tmp_path / "pictures")


@pytest.mark.parametrize(("given", "taken"), [("a", ("a",)), (["a", "b"], ("a", "b")), (None, ("identity",))])
def test_one_reference_or_several(given, taken):
    suite = Suite(**MINIMAL, **({} if given is None else {"reference": given}))
    assert suite.reference == taken
    assert Suite(**suite.to_dict()) == suite


def test_its_values_make_the_same_suite():
    suite = Suite(**MINIMAL, classifiers=[{"name": "hsi", "threshold": 0.3}])
    assert Suite(**suite.to_dict()) == suite
