"""A third party ships its facts, its models and its weights beside its module."""

import hashlib

import pytest

from stainbridge import discovery
from stainbridge.errors import MissingExtra, RegistryError, UnknownPlugin
from stainbridge.registry import load_registry

FACTS = """
[plugins.acme]
kinds = ["segmenter"]
summary = "Acme's nuclei"
extra = "gpu"
licence = "MIT"
commercial = true
"""

MODEL = """
[models."acme/small"]
plugin = "acme"
summary = "Small nuclei"
config = { min_area_um2 = 2.0 }
licence = "CC-BY-NC-4.0"
commercial = false
training = ["MoNuSeg"]
"""


def test_facts_and_models_are_found_without_importing(site):
    site.add("acme-nuclei", "raise RuntimeError('imported')", registry=FACTS + MODEL)
    registry = load_registry()
    assert registry.plugins["acme"].licence == "MIT"
    assert registry.models["acme/small"].config == {"min_area_um2": 2.0}
    assert registry.origins["models.acme/small"] == site.folder / "acme_nuclei" / "registry.toml"


@pytest.mark.parametrize("inner", ["acme_deep.plugin", "acme_deep.plugin:thing", "acme_deep"])
def test_the_file_may_lie_at_the_top_of_the_package(site, inner):
    site.add("acme-deep", "", registry=FACTS, entry_points=f"[stainbridge]\nacme = {inner}\n")
    assert "acme" in load_registry().plugins


def test_a_single_file_module_has_it_beside_itself(site):
    site.add_good("acme_single", "acme", registry=FACTS, single_file=True)
    assert "acme" in load_registry().plugins


def test_a_model_builds_with_its_settings_and_says_so(site):
    site.add_good("acme-nuclei", "acme", registry=FACTS + MODEL)
    site.catalog()
    built = discovery.build("segmenter", "acme/small")
    assert built.plugin.config.min_area_um2 == 2.0
    assert built.facts == {
        "kind": "segmenter",
        "name": "acme",
        "model": "acme/small",
        "distribution": "acme-nuclei",
        "version": "1.0",
        "api": 1,
        "config": {"min_area_um2": 2.0},
        "weights": [],
        "licence": "CC-BY-NC-4.0",
        "commercial": False,
        "training": ["MoNuSeg"],
        "citation": "",
    }


def test_the_users_settings_go_over_the_models(site):
    site.add_good("acme-nuclei", "acme", registry=FACTS + MODEL)
    site.catalog()
    built = discovery.build("segmenter", discovery.Choice("acme/small", {"min_area_um2": 9.0}))
    assert built.plugin.config.min_area_um2 == 9.0


def test_weights_beside_the_registry_reach_the_plugin(site, tmp_path, monkeypatch):
    monkeypatch.setenv("STAINBRIDGE_CACHE", str(tmp_path / "cache"))
    sha256 = hashlib.sha256(b"weights").hexdigest()
    weight = f'weights = [{{ file = "net.pt", sha256 = "{sha256}", size = 7, sources = ["file:files/net.pt"] }}]\n'
    home = site.add_good("acme-nuclei", "acme", registry=FACTS + MODEL + weight)
    (home / "files").mkdir()
    (home / "files" / "net.pt").write_bytes(b"weights")
    site.catalog()
    built = discovery.build("segmenter", "acme/small", offline=True)
    assert built.plugin.weights["net.pt"].read_bytes() == b"weights"
    assert built.facts["weights"] == [{"file": "net.pt", "sha256": sha256, "size": 7}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FACTS + "licens = 'MIT'", "unknown key 'licens' in plugins.acme. Did you mean 'licence'?"),
        ("[plugins.acme", "is not valid TOML"),
        (FACTS.replace("acme", "hsi"), "is in two registry files"),
    ],
)
def test_a_broken_file_is_recorded_and_the_plugin_still_works(site, text, message):
    site.add_good("acme-nuclei", "acme", registry=text)
    problem = site.problem("acme-nuclei")
    assert problem.failure == "registry"
    assert message in problem.message
    assert str(site.folder / "acme_nuclei" / "registry.toml") in problem.message
    assert discovery.build("segmenter", "acme").facts["licence"] is None


def test_asking_for_a_model_of_a_broken_file_mentions_it(site):
    site.add_good("acme-nuclei", "acme", registry=FACTS + MODEL + "licens = 1")
    site.catalog()
    with pytest.raises(UnknownPlugin, match=r"(?s)No model is named 'acme/small'.*Left out: .*unknown key 'licens'"):
        discovery.build("segmenter", "acme/small")


def test_a_missing_library_gives_the_pip_line_of_the_distribution(site):
    source = "    def __init__(self, *args, **options):\n        import acme_cuda_kernels\n\n    @property\n"
    home = site.add_good("acme-nuclei", "acme", registry=FACTS)
    path = home / "__init__.py"
    path.write_text(path.read_text().replace("    @property\n", source))
    site.catalog()
    with pytest.raises(MissingExtra, match=r"needs acme_cuda_kernels.*\nRun: pip install 'acme-nuclei\[gpu\]'"):
        discovery.build("segmenter", "acme")


def test_a_users_file_that_clashes_names_both(site, tmp_path):
    home = site.add_good("acme-nuclei", "acme", registry=FACTS + MODEL)
    mine = tmp_path / "mine.toml"
    mine.write_text(MODEL)
    site.catalog()
    with pytest.raises(RegistryError) as caught:
        discovery.build("segmenter", "acme", registries=[mine])
    assert str(mine) in str(caught.value)
    assert str(home / "registry.toml") in str(caught.value)


def test_a_users_file_adds_a_model(site, tmp_path):
    site.add_good("acme-nuclei", "acme", registry=FACTS)
    mine = tmp_path / "mine.toml"
    mine.write_text(MODEL.replace("small", "mine"))
    site.catalog()
    assert discovery.build("segmenter", "acme/mine", registries=[mine]).facts["model"] == "acme/mine"
