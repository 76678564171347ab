"""Data cards: checked when the registry is read, found by name, compared with what models were trained on."""

import pytest

from stainbridge.cards import DataCard, trained_on
from stainbridge.datasets import Fetch, fetch_split
from stainbridge.errors import DataUnavailable, RegistryError, UnknownDataset
from stainbridge.registry import Registry, load_registry

CARD = {
    "summary": "A set",
    "layout": "folder",
    "stain": "he",
    "mpp": 0.25,
    "licence": "CC0-1.0",
    "commercial": True,
    "aliases": ("MoNuSeg 2018",),
    "contains": ("kumar",),
}


def toml(**changes):
    values = {"summary": '"A set"', "layout": '"folder"', "stain": '"he"', "licence": '"CC0-1.0"', "commercial": "true"}
    values.update(changes)
    return "[datasets.mine]\n" + "\n".join(f"{key} = {value}" for key, value in values.items() if value is not None)


@pytest.fixture
def read(tmp_path):
    def make(text, name="r.toml"):
        (tmp_path / name).write_text(text)
        return Registry.read(tmp_path / name)

    return make


class TestCards:
    def test_a_third_party_ships_a_card_in_its_own_registry(self, read, tmp_path):
        registry = Registry().merge(read(toml(mpp="0.5")))
        assert registry.dataset("mine").mpp == 0.5
        assert registry.origins["datasets.mine"] == tmp_path / "r.toml"

    def test_two_files_with_one_name_are_both_named(self, read):
        with pytest.raises(RegistryError, match=r"'datasets.mine' is in two registry files: .*r.toml and .*s.toml"):
            read(toml()).merge(read(toml(), "s.toml"))

    def test_an_unknown_name_gets_the_nearest(self, read):
        with pytest.raises(UnknownDataset, match=r"No data set is named 'mines'. Did you mean 'mine'"):
            read(toml()).dataset("mines")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"layot": '"x"'}, "unknown key 'layot' in datasets.mine. Did you mean 'layout'"),
            ({"layout": '"zip"'}, "datasets.mine.layout = 'zip'"),
            ({"licence": None}, "datasets.mine lacks the key 'licence'"),
            ({"mpp": "nan"}, "datasets.mine.mpp"),
            ({"archives": '[{ split = "a", urls = ["http://example.org/x.zip"] }]'}, "must be an address https://"),
            ({"archives": '[{ split = "a", sha256 = "12" }]'}, "sha256 = '12'"),
            ({"archives": '[{ split = "../a" }]'}, "split = '../a'"),
            ({"archives": '[{ split = "a", folder = "../x" }]'}, "'../x' leaves the archive"),
            ({"archives": '[{ split = "a", into = ".." }]'}, "into = '..'"),
            ({"archives": '[{ split = "a" }, { split = "a" }]'}, "archives must have a different split each"),
            ({"pictures": "{ b = 3 }"}, r"pictures counts the splits \['b'\], which no archive has"),
        ],
    )
    def test_every_mistake_names_file_table_and_key(self, read, changes, words):
        with pytest.raises(RegistryError, match=f"r.toml: .*{words}"):
            read(toml(**changes))

    def test_a_name_is_lower_case_without_spaces(self, read):
        with pytest.raises(RegistryError, match=r"datasets.'My Set' must have a lower-case name"):
            read(toml().replace("datasets.mine", 'datasets."My Set"'))

    def test_every_card_that_is_shipped_can_be_fetched_or_says_where_to_get_it(self, tmp_path):
        for name, card in load_registry().datasets.items():
            for archive in card.archives:
                assert archive.hashed or not archive.urls, f"{name}/{archive.split} has an address but no hash"
                with pytest.raises(DataUnavailable, match=card.homepage):
                    fetch_split(name, card, archive.split, how=Fetch(tmp_path, offline=True))


class TestLeakage:
    @pytest.mark.parametrize("name", ["mine", "MINE", "monuseg_2018", "MoNuSeg2018", "Kumar", "mine/train"])
    def test_a_model_trained_on_it_is_found_by_any_of_its_names(self, name):
        assert trained_on("mine", DataCard(**CARD), ["consep", name]) == (name,)

    def test_another_split_is_no_leak(self):
        card = DataCard(**CARD)
        assert trained_on("mine", card, ["mine/train", "monuseg-2018/Test"], split="test") == ("monuseg-2018/Test",)

    def test_other_data_are_no_leak(self):
        assert trained_on("mine", DataCard(**CARD), ["min", "mine2", ""]) == ()
