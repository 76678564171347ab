"""Arrows point down: what may import what, read from the source."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import stainbridge

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "stainbridge"
ISLANDS = ROOT / "plugins" / "stainbridge_plugins"

# From the ground up; a module imports from its own layer (without going in circles) and from those below.
LAYERS = (
    "assignment errors overlap points records scores",
    "interfaces",
    "capabilities",
    "bootstrap cards color config hookspecs io measure preservation registry resampling resources scale stitching suite tiling torchkit",
    "weights",
    "discovery loading",
    "batch demonstration execution pipeline provenance rescoring scoring stages table virtual",
    "datasets detections tracking",
    "evaluation",
    "report training",
    "benchmarking",
    "cli_benchmark cli_datasets cli_train scaffold testing",
    "cli",
)
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer.split()}

# What a plugin may import of stainbridge besides its public names.
FOR_PLUGINS = {"color", "errors", "overlap", "points", "preservation", "records", "torchkit", "weights"}


def imports(path, package, root):
    """Yield (line, dotted name) of every import of `root` in a file, lazy ones too, those for type checkers not."""
    yield from _walk(ast.parse(path.read_text("utf-8")), package, root)


def _walk(node, package, root):
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = node.orelse
    else:
        yield from _named(node, package, root)
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from _walk(child, package, root)


def _named(node, package, root):
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == root)
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        if source.split(".")[0] == root:
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def package_of(path, top):
    """Return the dotted package that relative imports of a file start from."""
    return ".".join(path.relative_to(top).parent.parts)


def module_of(dotted):
    """Return the core module that holds a dotted name, or None for the package itself."""
    first = dotted.split(".")[1] if "." in dotted else ""
    if (CORE / first).is_dir() or (CORE / f"{first}.py").is_file():
        return first or None
    return stainbridge._HOMES.get(first)


def core_files():
    return [path for path in sorted(CORE.rglob("*.py")) if path != CORE / "__init__.py"]


def arrows():
    """Yield (file, line, importing module, imported module) of the core."""
    for path in core_files():
        own = path.relative_to(CORE).parts[0].removesuffix(".py")
        for line, dotted in imports(path, package_of(path, CORE.parent), "stainbridge"):
            target = module_of(dotted)
            if target is not None and target != own:
                yield path.relative_to(ROOT), line, own, target


def upward(found):
    return [f"{file}:{line}: {own} imports {target}" for file, line, own, target in found if LEVEL[own] < LEVEL[target]]


def test_every_core_module_has_a_layer():
    modules = {path.relative_to(CORE).parts[0].removesuffix(".py") for path in core_files()} - {"__main__"}
    assert not modules - LEVEL.keys(), f"add {sorted(modules - LEVEL.keys())} to LAYERS in {Path(__file__).name}"


def test_no_arrow_of_the_core_points_up():
    assert upward(arrow for arrow in arrows() if arrow[2] in LEVEL and arrow[3] in LEVEL) == []


def test_no_modules_of_the_core_import_each_other_in_a_circle():
    graph = {}
    for _, _, own, target in arrows():
        graph.setdefault(own, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_a_plugin_imports_public_names_and_its_own_files_only():
    wrong = []
    for path in sorted(ISLANDS.rglob("*.py")):
        package = package_of(path, ISLANDS.parent)
        island = path.relative_to(ISLANDS).parts[0].removesuffix(".py")
        wrong += [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in forbidden(path, package, island)]
    assert wrong == []


def forbidden(path, package, island):
    """Yield the imports of a plugin's file that reach into another plugin or behind the core's public names."""
    for line, dotted in imports(path, package, "stainbridge_plugins"):
        if dotted.split(".")[1:2] != [island]:
            yield line, dotted
    for line, dotted in imports(path, package, "stainbridge"):
        first = dotted.split(".")[1] if "." in dotted else ""
        if first and first not in FOR_PLUGINS and first not in stainbridge.__all__:
            yield line, dotted


def test_public_names_are_alphabetical_and_have_one_home():
    assert set(stainbridge.__all__) == set(stainbridge._HOMES)


class TestTheTestItself:
    """It must be able to fail."""

    @pytest.fixture
    def found(self, tmp_path):
        def read(text, package="stainbridge", root="stainbridge"):
            path = tmp_path / "some.py"
            path.write_text(text)
            return [dotted for _, dotted in imports(path, package, root)]

        return read

    @pytest.mark.parametrize(
        ("text", "dotted"),
        [
            ("import stainbridge.pipeline", "stainbridge.pipeline"),
            ("from stainbridge.pipeline import run", "stainbridge.pipeline.run"),
            ("from .pipeline import run", "stainbridge.pipeline.run"),
            ("from . import pipeline", "stainbridge.pipeline"),
            ("def f():\n    from . import pipeline", "stainbridge.pipeline"),
            ("try:\n    from stainbridge import run\nexcept ImportError:\n    pass", "stainbridge.run"),
        ],
    )
    def test_it_sees_every_way_to_import(self, found, text, dotted):
        assert found(text) == [dotted]
        assert module_of(dotted) == "pipeline"

    def test_it_sees_through_subpackages(self, found):
        assert found("from ..records import Image", "stainbridge.io") == ["stainbridge.records.Image"]

    def test_it_passes_over_imports_for_type_checkers(self, found):
        assert found("if TYPE_CHECKING:\n    from .pipeline import run\nelse:\n    from . import io") == [
            "stainbridge.io"
        ]

    def test_it_calls_an_arrow_from_records_to_the_pipeline_wrong(self):
        assert upward([("records.py", 3, "records", "pipeline"), ("pipeline.py", 4, "pipeline", "records")]) == [
            "records.py:3: records imports pipeline"
        ]

    def test_it_calls_another_plugin_and_core_internals_wrong(self, tmp_path):
        path = tmp_path / "some.py"
        path.write_text(
            "from stainbridge import RGB, pipeline\nfrom stainbridge.color import unmix\nfrom stainbridge.tiling import tiles\n"
            "from .hsi import x\nfrom stainbridge_plugins.cellpose import y\nfrom stainbridge_plugins.own.hsi import z\n"
        )
        assert [name for _, name in forbidden(path, "stainbridge_plugins.own", "own")] == [
            "stainbridge_plugins.cellpose.y",
            "stainbridge.pipeline",
            "stainbridge.tiling.tiles",
        ]
