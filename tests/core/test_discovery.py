"""The built-in plugins, by the door that everyone uses, and what `build` says when it cannot."""

import importlib
import json
import tomllib
from pathlib import Path

import pytest
from pydantic import Field

from stainbridge import PluginConfig, Segmenter, Wants, discovery, hookimpl
from stainbridge.config import Choice, RunConfig
from stainbridge.discovery import resolved
from stainbridge.errors import ConfigError, ContractViolation, MissingExtra, PluginUnavailable, UnknownPlugin
from stainbridge.loading import HOOKS, Catalog
from stainbridge.registry import Registry
from stainbridge.resources import locate

ROOT = Path(__file__).resolve().parents[2]


class Thin(Segmenter):
    name = "thin"
    api = 1
    raises: BaseException | None = None

    class Config(PluginConfig):
        min_area_um2: float = 5.0
        scaling: dict[str, float] = Field({"low": 1.0, "high": 99.0})

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        if self.raises is not None:
            raise self.raises

    @property
    def wants(self):
        return Wants(stain="he")

    def segment(self, batch):
        raise NotImplementedError


class ThinPlugin:
    @hookimpl
    def register_segmenters(self):
        return [Thin]


@pytest.fixture
def thin():
    undo = discovery.register(ThinPlugin())
    yield
    undo()


@pytest.fixture
def failing(thin, monkeypatch):
    return lambda error: monkeypatch.setattr(Thin, "raises", error)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The catalog as it is once stainbridge is installed, by the entry points of pyproject.toml."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / f"stainbridge-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: stainbridge\nVersion: {project['version']}\n")
    points = project["entry-points"]["stainbridge"]
    (info / "entry_points.txt").write_text(
        "[stainbridge]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        yield discovery.catalog(refresh=True)
    discovery.catalog(refresh=True)


def test_every_built_in_loads(installed):
    assert not [problem for problem in installed.problems if problem.distribution == "stainbridge"]


def test_code_and_registry_agree_on_what_is_built_in(installed):
    own = {(one.kind, one.name) for one in installed.found if one.distribution == "stainbridge"}
    registered = {
        (kind, name)
        for name, facts in installed.registry.plugins.items()
        if installed.registry.origins[f"plugins.{name}"] == locate("registry.toml")
        for kind in facts.kinds
    }
    assert own == registered


def test_every_built_in_model_fits_its_plugin(installed):
    for name, model in installed.registry.models.items():
        for kind in installed.registry.plugins[model.plugin].kinds:
            cls = installed.get(kind, model.plugin)
            assert cls.Config.model_validate(model.config), name


def test_every_extra_in_the_registry_is_one_of_the_project(installed):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {facts.extra for facts in installed.registry.plugins.values()} - {""} <= extras.keys()


def test_a_stated_stain_is_the_one_the_plugin_wants(installed):
    for name, facts in installed.registry.plugins.items():
        if facts.stain and not facts.extra:
            assert discovery.build(facts.kinds[0], name).plugin.wants.stain == facts.stain, name


def test_discovery_runs_once(installed):
    assert discovery.catalog() is discovery.catalog()
    assert discovery.catalog(refresh=True) is discovery.catalog()


def test_a_metric_is_built_without_settings(installed):
    assert discovery.build("metric", "dice").facts["config"] == {}
    with pytest.raises(ConfigError, match=r"metric 'dice': unknown key 'x'\. It takes no keys\."):
        discovery.build("metric", Choice("dice", {"x": 1}))


def test_a_plugin_of_another_kind_is_pointed_out(thin):
    with pytest.raises(UnknownPlugin, match=r"No translator is named 'thin'\. 'thin' is a segmenter\."):
        discovery.get("translator", "thin")


def test_an_unknown_kind_is_refused():
    with pytest.raises(UnknownPlugin, match=r"No kind of plugin is named 'segmentor'\. Did you mean 'segmenter'\?"):
        Catalog().get("segmentor", "x")


def test_a_registered_plugin_that_nothing_provides_is_unavailable():
    registry = discovery.load_registry()
    with pytest.raises(PluginUnavailable, match=r"'hsi' is in .*registry\.toml, but nothing installed provides it"):
        Catalog(registry=registry).get("classifier", "hsi")


def test_defaults_are_part_of_the_facts(thin):
    facts = discovery.build("segmenter", "thin").facts
    assert facts["config"] == {"min_area_um2": 5.0, "scaling": {"low": 1.0, "high": 99.0}}
    assert (facts["licence"], facts["commercial"], facts["model"]) == (None, None, None)
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("choice", ["thin", {"name": "thin"}, Choice("thin")])
def test_a_choice_may_be_a_string_a_table_or_a_choice(thin, choice):
    assert isinstance(discovery.build("segmenter", choice).plugin, Thin)


@pytest.mark.parametrize("choice", [3, None, {"min_area_um2": 3}, ""])
def test_a_choice_that_names_nothing_is_refused(choice):
    with pytest.raises(ConfigError, match=r"segmenter = .*: must (be a name|have a name)"):
        discovery.build("segmenter", choice)


def test_the_device_reaches_the_plugin(thin):
    assert discovery.build("segmenter", "thin", device="cuda:1").plugin.device == "cuda:1"


def test_an_unknown_setting_gets_the_nearest(thin):
    with pytest.raises(ConfigError, match=r"segmenter 'thin': unknown key 'min_area'. Did you mean 'min_area_um2'\?"):
        discovery.build("segmenter", Choice("thin", {"min_area": 3}))


def test_a_users_table_goes_over_a_models_table_key_by_key(thin, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[models."thin/low"]\nplugin = "thin"\nsummary = "x"\nlicence = "MIT"\ncommercial = true\n'
        "config = { min_area_um2 = 1.0, scaling = { low = 0.1, high = 99.9 } }\n"
    )
    choice = Choice("thin/low", {"scaling": {"high": 98.0}})
    config = discovery.build("segmenter", choice, registries=[path]).plugin.config
    assert (config.min_area_um2, config.scaling) == (1.0, {"low": 0.1, "high": 98.0})


def test_an_instance_is_taken_as_it_is(tmp_path):
    file = tmp_path / "net.pt"
    file.write_bytes(b"abc")
    plugin = Thin(Thin.Config(min_area_um2=7), weights={"net.pt": file})
    built = discovery.build("segmenter", plugin)
    assert built.plugin is plugin
    assert built.facts["config"]["min_area_um2"] == 7
    assert built.facts["weights"] == [
        {"file": "net.pt", "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "size": 3}
    ]


def test_an_instance_of_another_kind_is_refused():
    with pytest.raises(ContractViolation, match="A translator must be a Translator; found an instance of Thin"):
        discovery.build("translator", Thin())


def test_a_library_that_is_missing_gives_the_pip_line(failing):
    failing(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    with pytest.raises(
        MissingExtra, match=r"segmenter 'thin' needs torch, which is not installed\.\nRun: pip install 'torch'"
    ):
        discovery.build("segmenter", "thin")


def test_a_library_that_is_broken_is_not_called_missing(failing):
    failing(ImportError("cannot import name 'x' from 'torch'", name="torch"))
    with pytest.raises(MissingExtra, match="torch is installed but cannot be imported: cannot import name 'x'"):
        discovery.build("segmenter", "thin")


def test_a_plugins_own_missing_module_is_its_fault(failing):
    failing(ModuleNotFoundError("No module named 'm'", name=Thin.__module__))
    with pytest.raises(PluginUnavailable, match="'thin' is broken: No module named 'm'"):
        discovery.build("segmenter", "thin")


def test_whatever_a_constructor_raises_names_the_plugin(failing):
    failing(RuntimeError("operator does not exist"))
    with pytest.raises(
        PluginUnavailable, match=r"'thin' .* could not be constructed: RuntimeError: operator does not exist"
    ):
        discovery.build("segmenter", "thin")


def test_an_error_of_ours_passes_unchanged(failing):
    failing(MissingExtra.of("thin", "torch", "torch"))
    with pytest.raises(MissingExtra, match=r"pip install 'stainbridge\[torch\]'"):
        discovery.build("segmenter", "thin")


def test_every_kind_has_its_hook():
    assert set(HOOKS) == {"translator", "segmenter", "classifier", "metric"}


class TestDefaults:
    """What is taken where nothing is named."""

    @pytest.fixture
    def registry(self, tmp_path):
        """Add a segmenter whose library is, or is not, installed before the baseline."""

        def write(module):
            path = tmp_path / "registry.toml"
            path.write_text(
                f'''
                [plugins.learned]
                kinds = ["segmenter"]
                summary = "x"
                requires = ["{module}"]
                licence = "MIT"
                commercial = true
                [[defaults]]
                segmenter = "learned"
                translator = "deconvolution"
                '''
            )
            return Registry.read(locate("registry.toml")).merge(Registry.read(path))

        return write

    def test_the_first_whose_library_is_there_is_taken(self, registry):
        assert registry("json").default_for(None).segmenter == "learned"
        assert registry("no_such_library").default_for(None).segmenter in ("instanseg/brightfield", "baseline")

    def test_a_named_segmenter_brings_its_translator(self, registry):
        assert registry("no_such_library").default_for("learned/any").translator == "deconvolution"
        assert registry("json").default_for("stranger") is None

    def test_a_run_is_completed_and_settings_reach_the_plugin_that_was_found(self):
        config = resolved(RunConfig(segmenter="baseline"), ["segmenter.least_area_um2=9", "seed=4"])
        assert config.segmenter == Choice("baseline", {"least_area_um2": 9})
        assert (config.translator, config.seed) == (Choice("identity"), 4)

    def test_a_segmenter_without_a_default_sees_the_ihc(self):
        assert resolved(RunConfig(segmenter="stranger")).translator == Choice("identity")

    def test_what_is_named_stays(self):
        config = RunConfig(segmenter="baseline", translator="deconvolution")
        assert resolved(config) == config


def test_a_missing_library_is_said_before_weights_are_fetched(monkeypatch):
    from stainbridge import registry, weights

    def untouched(*_, **__):
        pytest.fail("weights were fetched for a plugin that cannot run")

    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(weights.Store, "fetch", untouched)
    with pytest.raises(
        MissingExtra, match=r"needs torch, which is not installed.\nRun: pip install 'stainbridge\[torch\]'"
    ):
        discovery.build("segmenter", "instanseg/brightfield")


class TestAFolderThatHoldsAModel:
    @pytest.fixture
    def folder(self, tmp_path):
        def make(*names, inside="model"):
            place = tmp_path / "run" / inside
            place.mkdir(parents=True)
            tables = [
                f'[models."{name}"]\nplugin = "baseline"\nsummary = "Mine"\nconfig = {{ stain = "he" }}\n'
                'licence = "unstated"\ncommercial = false\n'
                for name in names
            ]
            (place / "registry.toml").write_text("\n".join(tables))
            return tmp_path / "run"

        return make

    @pytest.mark.parametrize("inside", ["model", "."])
    def test_stands_for_its_model(self, folder, inside):
        config = resolved(RunConfig(segmenter=str(folder("baseline/mine", inside=inside))))
        assert config.segmenter.name == "baseline/mine"
        assert [path.name for path in config.registries] == ["registry.toml"]
        assert (
            discovery.build("segmenter", config.segmenter, registries=config.registries).facts["model"]
            == "baseline/mine"
        )

    def test_can_be_built_and_set_directly(self, folder):
        built = discovery.build("segmenter", Choice(str(folder("baseline/mine")), {"least_area_um2": 7.0}))
        assert built.plugin.config.stain == "he"
        assert built.plugin.config.least_area_um2 == 7.0

    def test_may_be_named_besides_its_registry(self, folder):
        run = folder("baseline/mine")
        config = RunConfig(segmenter=str(run), registries=(run / "model" / "registry.toml",))
        assert len(resolved(config).registries) == 1

    def test_must_hold_one_model(self, folder):
        with pytest.raises(ConfigError, match=r"(?s)holds 2 models \(baseline/a, baseline/b\).*Name it: --registry"):
            resolved(RunConfig(segmenter=str(folder("baseline/a", "baseline/b"))))

    def test_is_nothing_special_without_a_registry_file(self, tmp_path):
        with pytest.raises(UnknownPlugin, match="No model is named"):
            discovery.build("segmenter", str(tmp_path))

    def test_does_not_take_the_place_of_a_plugin_of_its_name(self, folder, monkeypatch):
        run = folder("baseline/mine")
        run.rename(run.with_name("baseline"))
        monkeypatch.chdir(run.parent)
        assert resolved(RunConfig(segmenter="baseline")).segmenter.name == "baseline"
        assert resolved(RunConfig(segmenter="./baseline")).segmenter.name == "baseline/mine"

    def test_may_have_no_model_yet(self, tmp_path):
        (tmp_path / "training.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"a training without a model yet.*\n.*--resume"):
            discovery.build("translator", str(tmp_path))
