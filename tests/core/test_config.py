import tomllib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from stainbridge.config import Choice, RunConfig, explain
from stainbridge.errors import ConfigError


def load(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return RunConfig.load(path)


def test_a_run_without_a_file_has_defaults():
    config = RunConfig()
    assert (config.translator, config.segmenter, config.classifier.name) == (None, None, "hsi")
    assert (config.seed, config.bootstraps, config.grade_cuts, config.device) == (0, 1000, None, "cpu")


def test_a_plugin_is_a_string_or_a_table(tmp_path):
    config = load(tmp_path, 'classifier = "dab"\n[segmenter]\nname = "baseline/he"\nmin_area_um2 = 20\n')
    assert config.classifier == Choice("dab")
    assert config.segmenter == Choice("baseline/he", {"min_area_um2": 20})


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('segmentor = "x"', "unknown key 'segmentor'. Did you mean 'segmenter'? Known keys: translator, segmenter"),
        ("mpp = -1", "mpp = -1: must be micrometres per pixel between 0.05 and 20.0"),
        ("mpp = nan", "mpp = nan: must be"),
        ('seed = "three"', "seed = 'three': must be a valid integer"),
        ("threshold = 1.5", "threshold = 1.5: must be less than or equal to 1."),
        ("tile_px = 0", "tile_px = 0: must be greater than 0."),
        ('device = "gpu"', "device = 'gpu': must be 'cpu', 'cuda' or 'cuda:N'."),
        ("grade_cuts = [0.4, 0.2, 0.6]", "must be three increasing positive optical densities"),
        ("segmenter = 3", "segmenter = 3: must be a name or a table with a name."),
        ("[segmenter]\nmin_area_um2 = 3", "must have a name: the plugin ('baseline') or model ('baseline/he')"),
        ("seed = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "run.toml"))
    assert message in str(caught.value)


def test_a_mistake_in_python_reads_the_same():
    with pytest.raises(ConfigError, match=r"unknown key 'tile'\. Did you mean 'tile_px'\?"):
        RunConfig(tile=3)


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)seed = -1.*bootstraps = -1"):
        load(tmp_path, "seed = -1\nbootstraps = -1\n")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read: No such file"):
        RunConfig.load(tmp_path / "absent.toml")


def test_registries_are_relative_to_the_file(tmp_path):
    config = load(tmp_path, f'registries = ["mine.toml", "{(tmp_path / "a.toml").as_posix()}"]')
    assert config.registries == (tmp_path / "mine.toml", tmp_path / "a.toml")


class TestOverrides:
    """`--set KEY=VALUE`."""

    def test_values_are_read_as_toml_else_as_strings(self):
        config = RunConfig().with_overrides(
            [
                "segmenter=baseline",
                "segmenter.min_area_um2=20",
                "seed=3",
                "offline=true",
                "segmenter.note=pale ones",
                "grade_cuts=[0.1, 0.2, 0.3]",
            ]
        )
        assert config.segmenter == Choice("baseline", {"min_area_um2": 20, "note": "pale ones"})
        assert (config.seed, config.offline, config.grade_cuts) == (3, True, (0.1, 0.2, 0.3))

    def test_a_bare_name_drops_the_settings_of_the_former_plugin(self):
        config = RunConfig(segmenter="baseline").with_overrides(
            ["segmenter.min_area_um2=20", "segmenter=stardist/he", "segmenter.nms=0.3"]
        )
        assert config.segmenter == Choice("stardist/he", {"nms": 0.3})

    def test_a_setting_of_no_plugin_says_to_name_it(self):
        with pytest.raises(ConfigError, match="no segmenter is named yet; name it too, such as segmenter=NAME"):
            RunConfig().with_overrides(["segmenter.min_area_um2=20"])

    def test_deep_keys_make_tables(self):
        assert RunConfig(segmenter="baseline").with_overrides(["segmenter.a.b=1"]).segmenter.config == {"a": {"b": 1}}

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("sead=3", "unknown key 'sead'. Did you mean 'seed'?"),
            ("seed", "--set seed: expected KEY=VALUE"),
            ("=3", "expected KEY=VALUE"),
            ("seed.x=3", "--set seed.x=3: 'seed' is a single value"),
            ("seed=x", "seed = 'x': must be a valid integer"),
            ("sementer.x=1", "unknown key 'sementer'. Did you mean 'segmenter'?"),
        ],
    )
    def test_a_mistake_is_named(self, setting, message):
        with pytest.raises(ConfigError) as caught:
            RunConfig().with_overrides([setting])
        assert message in str(caught.value)

    def test_the_original_stays(self):
        before = RunConfig(segmenter=Choice("baseline", {"deep": {"a": 1}}))
        before.with_overrides(["segmenter.deep.a=2"])
        assert before.segmenter.config == {"deep": {"a": 1}}


plain = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
settings_of_a_plugin = st.dictionaries(
    st.text(st.characters(codec="utf-8")).filter(lambda key: key != "name"),
    st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5),
    max_size=4,
)


@given(settings_of_a_plugin)
def test_what_is_written_as_toml_reads_back_equal(settings):
    config = RunConfig(segmenter=Choice("baseline", settings), mpp=0.25, registries=(Path("a b/c.toml"),))
    assert RunConfig(**tomllib.loads(config.to_toml())) == config


def test_plain_values_make_the_same_run_again():
    config = RunConfig(mpp=0.25, segmenter={"name": "baseline", "min_area_um2": 4}, registries=["x.toml"])
    assert RunConfig(**config.to_dict()) == config
    assert config.to_dict()["segmenter"] == {"name": "baseline", "min_area_um2": 4}


def test_toml_cannot_say_none():
    with pytest.raises(ConfigError, match="diameter_um = None cannot be written as TOML"):
        RunConfig(segmenter=Choice("cellpose", {"diameter_um": None})).to_toml()


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    percentile: float = 1.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mode: Literal["a", "b"] = "a"
    scaling: Inner | None = None
    many: list[Inner] = []
    named: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scaling": {"percentil": 3}}, "unknown key 'percentil' in scaling. Did you mean 'percentile'?"),
        ({"many": [{}, {"percentil": 3}]}, "unknown key 'percentil' in many.1. Did you mean 'percentile'?"),
        ({"named": {"x y": {"percentil": 3}}}, "unknown key 'percentil' in named.\"x y\". Did you mean 'percentile'?"),
        ({"mode": "c"}, "mode = 'c': must be 'a' or 'b'."),
        ({"scaling": {"percentile": "x" * 200}}, "..."),
    ],
)
def test_nested_settings_of_a_plugin_are_explained(values, message):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    error = explain(caught.value, Outer, "segmenter 'acme'")
    assert isinstance(error, ConfigError)
    assert str(error).startswith("segmenter 'acme': ")
    assert message in str(error)
    assert len(str(error)) < 250
