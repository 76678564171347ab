"""A bad plugin of a stranger is named and explained, and costs nobody else anything."""

import os
import subprocess
import sys

import pytest

from stainbridge import discovery
from stainbridge.errors import PluginUnavailable, UnknownPlugin

CLASS = """
import numpy as np
from stainbridge import Segmenter, Translator, Wants, hookimpl


class Odd(Segmenter):
    name = "odd"
    api = 1

    @property
    def wants(self):
        return Wants(stain="he")

    def segment(self, batch):
        return np.zeros(batch.shape[:3], np.int32)

"""


def hook(body):
    return CLASS + f"\n@hookimpl\ndef register_segmenters():\n    {body}\n"


def test_a_good_plugin_is_found_with_its_origin(site):
    (found,) = [one for one in site.catalog().found if one.name == "fine"]
    assert (found.kind, found.distribution, found.version, found.entry_point, found.api) == (
        "segmenter",
        "good-one",
        "1.0",
        "good_one",
        1,
    )


def test_a_broken_import_is_kept_with_its_traceback(site):
    site.add("bad-import", "import a_library_that_nobody_has\n")
    problem = site.problem("bad-import")
    assert problem.failure == "broken"
    assert "ModuleNotFoundError: No module named 'a_library_that_nobody_has'" in problem.message
    assert "bad_import/__init__.py" in problem.traceback.replace(os.sep, "/")


@pytest.mark.parametrize(
    "statement", ["raise SystemExit(3)", "import sys; sys.exit('bye')", "raise BaseException('x')"]
)
def test_a_plugin_cannot_end_its_host(site, statement):
    site.add("bad-exit", statement)
    assert site.problem("bad-exit").failure == "broken"


def test_an_error_that_cannot_be_printed_is_still_reported(site):
    site.add("bad-words", "class E(Exception):\n    def __str__(self):\n        return 1 / 0\n\nraise E")
    assert "E: (it cannot say why)" in site.problem("bad-words").message


def test_a_module_that_raises_for_every_attribute_is_not_a_plugin(site):
    site.add("bad-lazy", "def __getattr__(name):\n    raise ImportError(name)\n")
    assert site.problem("bad-lazy").failure in ("broken", "not a plugin")


def test_a_syntax_error_is_broken(site):
    site.add("bad-syntax", "def (:\n")
    assert "SyntaxError" in site.problem("bad-syntax").message


def test_a_missing_module_is_broken(site):
    site.add("bad-target", "", entry_points="[stainbridge]\nghost = no_such_module\n")
    assert "No module named 'no_such_module'" in site.problem("bad-target").message


def test_a_raising_hook_is_broken_and_named(site):
    site.add("bad-hook", hook("raise RuntimeError('no licence key')"))
    problem = site.problem("bad-hook")
    assert (problem.failure, problem.message) == (
        "broken",
        "register_segmenters failed: RuntimeError: no licence key",
    )


def test_a_hook_that_exits_is_broken(site):
    site.add("bad-hook-exit", hook("raise SystemExit"))
    assert site.problem("bad-hook-exit").failure == "broken"


def test_a_hook_with_arguments_is_broken(site):
    site.add("bad-arguments", CLASS + "\n@hookimpl\ndef register_segmenters(config):\n    return [Odd]\n")
    problem = site.problem("bad-arguments")
    assert problem.failure == "broken"
    assert "config" in problem.message


def test_a_misspelt_hook_is_told_the_right_spelling(site):
    site.add("bad-spelling", CLASS + "\n@hookimpl\ndef register_segmentors():\n    return [Odd]\n")
    problem = site.problem("bad-spelling")
    assert problem.failure == "misspelt hook"
    assert "there is no hook 'register_segmentors'. Did you mean 'register_segmenters'?" in problem.message


def test_the_well_spelt_hooks_beside_a_misspelt_one_count(site):
    site.add("half-spelt", hook("return [Odd]") + "\n@hookimpl\ndef register_translaters():\n    return []\n")
    assert site.problem("half-spelt").failure == "misspelt hook"
    assert site.catalog().get("segmenter", "odd").name == "odd"


def test_a_module_without_hooks_is_told_about_the_decorator(site):
    site.add("bad-bare", CLASS + "\ndef register_segmenters():\n    return [Odd]\n")
    problem = site.problem("bad-bare")
    assert problem.failure == "not a plugin"
    assert "Put @stainbridge.hookimpl above register_segmenters" in problem.message


def test_a_module_with_nothing_in_it_is_not_a_plugin(site):
    site.add("bad-empty", "")
    assert "Hooks: register_translators, register_segmenters" in site.problem("bad-empty").message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "must return a list of classes; found None (is the return missing?)"),
        ("return Odd", "must return a list of classes; found the class bad_return.Odd"),
        ("yield Odd", "must return a list of classes; found an instance of generator"),
        ("return [Odd()]", "returned an instance of Odd, which is not a subclass of Segmenter"),
        ("return [int]", "returned the class builtins.int, which is not a subclass of Segmenter"),
    ],
)
def test_what_a_hook_returns_is_checked(site, body, message):
    site.add("bad-return", hook(body))
    problem = site.problem("bad-return")
    assert problem.failure == "not a plugin"
    assert message in problem.message


def test_a_segmenter_is_no_translator(site):
    site.add("bad-kind", CLASS + "\n@hookimpl\ndef register_translators():\n    return [Odd]\n")
    assert "is not a subclass of Translator" in site.problem("bad-kind").message


@pytest.mark.parametrize(
    ("change", "failure", "message"),
    [
        (("api = 1", "api = 2"), "incompatible", "was written for API version 2; this stainbridge has 1"),
        (("    api = 1\n", ""), "incompatible", "states no API version; this stainbridge has 1"),
        (("def segment(", "def segmentise("), "not a plugin", "does not implement segment"),
        (('name = "odd"', 'name = "Odd/One"'), "not a plugin", "needs a lower-case name"),
        (('    name = "odd"\n', ""), "not a plugin", "found None"),
        (("api = 1\n", "api = 1\n    Config = dict\n"), "not a plugin", "Config must be a subclass of PluginConfig"),
    ],
)
def test_a_class_that_breaks_the_contract_says_how(site, change, failure, message):
    site.add("bad-class", hook("return [Odd]").replace(*change))
    problem = site.problem("bad-class")
    assert problem.failure == failure
    assert message in problem.message


def test_asking_for_an_incompatible_plugin_says_why(site):
    site.add("too-new", hook("return [Odd]").replace("api = 1", "api = 7"))
    with pytest.raises(
        PluginUnavailable, match=r"(?s)'odd' cannot be used: incompatible.*API version 7.*plugins doctor"
    ):
        site.catalog().get("segmenter", "odd")


def test_asking_for_a_broken_entry_point_says_why(site):
    site.add("broken-one", "1 / 0")
    with pytest.raises(PluginUnavailable, match="ZeroDivisionError"):
        site.catalog().get("segmenter", "broken_one")


def test_an_unknown_name_gets_the_nearest_and_the_doctor(site):
    site.add("broken-one", "1 / 0")
    with pytest.raises(UnknownPlugin, match=r"(?s)Did you mean 'fine'\?.*broken-one.*stainbridge plugins doctor"):
        site.catalog().get("segmenter", "fin")


def test_two_distributions_with_one_name_get_neither(site):
    site.add_good("twin-a", "twin")
    site.add_good("twin-b", "twin", version="2.0")
    catalog = site.catalog()
    (problem,) = [one for one in catalog.problems if one.name == "twin"]
    assert problem.failure == "duplicate"
    with pytest.raises(PluginUnavailable, match=r"twin-a 1\.0 .* and twin-b 2\.0 .*Neither is used"):
        catalog.get("segmenter", "twin")
    assert catalog.get("segmenter", "fine")


def test_one_distribution_seen_twice_is_no_duplicate(site, tmp_path, monkeypatch):
    second = tmp_path / "second"
    second.mkdir()
    again = type(site)(second)
    again.add_good("good.one", "fine")
    monkeypatch.syspath_prepend(str(second))
    monkeypatch.syspath_prepend(str(site.folder))
    catalog = site.catalog()
    assert [one.distribution for one in catalog.found if one.name == "fine"] == ["good-one"]
    assert not [one for one in catalog.problems if one.name == "fine"]


def test_two_distributions_with_one_class_get_neither(site):
    site.add("good-two", "", entry_points="[stainbridge]\nother = good_one\n")
    (problem,) = [one for one in site.catalog().problems if one.name == "fine"]
    assert problem.distribution == "good-one, good-two"


def test_two_entry_points_to_one_module_are_no_duplicate(site):
    site.add_good("two-doors", "open", entry_points="[stainbridge]\na = two_doors\nb = two_doors\n")
    assert site.catalog().get("segmenter", "open")


def test_unreadable_metadata_of_a_stranger_is_reported(site):
    site.add("bad-metadata", "", entry_points="[stainbridge]\nthis line has no equals sign\n")
    assert "entry_points.txt cannot be read" in site.problem("bad-metadata").message


def test_what_a_plugin_prints_stays_off_stdout(site, capsys):
    site.add_good("chatty", "chatty")
    with open(site.folder / "chatty" / "__init__.py", "a") as file:
        file.write("\nprint('hello')\n")
    assert site.catalog().get("segmenter", "chatty")
    assert capsys.readouterr().out == ""


def test_ctrl_c_is_not_swallowed(site):
    site.add("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.catalog()


def test_a_fresh_process_survives_all_of_it(site):
    site.add("bad-exit", "raise SystemExit(3)")
    site.add("bad-spelling", CLASS + "\n@hookimpl\ndef register_segmentors():\n    return [Odd]\n")
    code = "import stainbridge as s; c = s.catalog(); print(c.get('segmenter', 'fine').name, len(c.problems) >= 2)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site.folder), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["fine", "True"]), done.stderr


def test_the_doctor_names_unreadable_metadata_in_a_fresh_process(site):
    site.add("bad-metadata", "", entry_points="[stainbridge]\nthis line has no equals sign\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYDANTIC_DISABLE_PLUGINS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(site.folder), *sys.path])
    command = [sys.executable, "-m", "stainbridge", "plugins", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    assert "bad-metadata" in done.stdout + done.stderr
    assert "entry_points.txt" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


class TestRegister:
    """Plugins of a notebook or a test."""

    @staticmethod
    def plugin(name):
        space = {"__name__": "notebook"}
        exec(CLASS.replace('"odd"', repr(name)) + "\n@hookimpl\ndef register_segmenters():\n    return [Odd]\n", space)
        return type("Module", (), {"register_segmenters": staticmethod(space["register_segmenters"])})()

    def test_it_is_there_until_undone(self, site):
        site.catalog()
        undo = discovery.register(self.plugin("mine"))
        assert discovery.build("segmenter", "mine").facts["distribution"] == discovery.IN_PROCESS
        undo()
        with pytest.raises(UnknownPlugin):
            discovery.get("segmenter", "mine")

    def test_running_the_cell_again_replaces_it(self, site):
        catalog = site.catalog().with_plugin(self.plugin("mine"), "cell")
        again = catalog.with_plugin(self.plugin("mine"), "cell")
        assert again.get("segmenter", "mine") is not catalog.get("segmenter", "mine")

    def test_what_is_installed_may_be_registered_too(self, site):
        catalog = site.catalog()
        again = catalog.with_plugin(sys.modules["good_one"])
        assert again.found == catalog.found

    def test_a_name_that_is_taken_is_refused(self, site):
        before = site.catalog()
        with pytest.raises(PluginUnavailable, match="duplicate: segmenter 'fine' is provided by"):
            discovery.register(self.plugin("fine"))
        assert discovery.catalog() is before
