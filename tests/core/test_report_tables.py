"""Tables and page of a benchmark whose numbers are known."""

import csv
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from stainbridge.report.grid import Cell, Column, Row, Table, escape_latex, escape_markdown
from stainbridge.report.page import MAX_ROWS, write_page
from stainbridge.report.published import published
from stainbridge.report.tables import slugs, table1, table2, tables, write_records, write_tables
from stainbridge.scores import Benchmark, Combination, Difference, ImageScore, Scores

NASTY = 'a_b|c*d <script>alert("1")</script> & 50 % $x$ #1 {y} [z] ~^\\'


def rates(tp, fp, fn):
    return {
        "accuracy": tp / (tp + fp + fn),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
    }


def values_of(counts):
    """Return values by name from counts (T, 3) of tp, fp, fn at IoU 0.50..1.00."""
    named = {
        f"matching/{key}@{0.5 + 0.05 * t:.2f}": one
        for t in range(11)
        for key, one in rates(*counts[t].tolist()).items()
    }
    return {**named, "detection/f1": min(1.0, named["matching/f1@0.50"] + 0.04)}


def cell(translator, segmenter, *, seed=0, skill=0.7, images=12, role="method", dataset="DeepLIIF test", **given):
    """Return a cell whose pooled values follow from the counts of its pictures."""
    rng = np.random.default_rng(seed)
    each = []
    for _ in range(images):
        n = int(rng.integers(40, 120))
        fall = np.ones(11) if skill == 1 else np.linspace(1, 0.03, 11) ** 1.5
        share = (1.0 if skill == 1 else np.clip(skill + rng.normal(0, 0.05), 0.05, 1)) * fall
        tp = np.maximum((n * share).round(), 1)
        fp = np.full(11, n if skill == 1 else int(n * rng.uniform(0.8, 1.2)))
        each.append(np.stack([tp, np.maximum(fp - tp, 0), n - tp], axis=1))
    scores = tuple(
        ImageScore(
            f"tile_{i:03}.png",
            values={**values_of(counts), "dice/dice": 0.5 + skill / 3},
            nuclei=int(counts[0, 0] + counts[0, 1]),
            seconds={"translate": 0.2, "segment": 1 + float(rng.random())},
            peak_mb=900.0,
            subset=("regular", "clustered", "artifact")[i % 3],
        )
        for i, counts in enumerate(each)
    )
    pooled = {
        **values_of(np.sum(each, axis=0)),
        "dice/dice_pooled": 0.5 + skill / 3,
        "dice/dice_mean": 0.49 + skill / 3,
    }
    intervals = {key: (max(value - 0.03, 0), min(value + 0.03, 1)) for key, value in pooled.items()}
    subsets = {name: {"detection/f1": pooled["detection/f1"] - 0.05 * i} for i, name in enumerate(SUBSETS)}
    named = Combination(dataset, translator, segmenter, role=role)
    return Scores(named, **{"images": scores, "pooled": pooled, "intervals": intervals, "subsets": subsets} | given)


SUBSETS = ("regular", "clustered", "artifact")
FACTS = {
    "software": {
        "stainbridge": "0.1.0",
        "commit": "1000ded-dirty",
        "python": "3.11.9",
        "libraries": {"numpy": "2.0.2"},
    },
    "device": "cpu",
    "data": {"name": "DeepLIIF test", "licence": "CC-BY-4.0", "mpp": 0.25, "sha256": "5f" * 32, "splits": ["test"]},
    "plugins": {"segmenter": {"name": "stardist/he", "commercial": True}},
}


def suite():
    """Return a suite with everything that happens: methods, controls, flags, failed pictures, a failed cell."""
    lost = ImageScore("tile_004.png", "failed", "UnreadablePicture: 'tile_004.png' is truncated.\nFetch it again.")
    some = cell("cyclegan", "cellpose/nuclei", seed=2, skill=0.8)
    cells = (
        cell("deconvolution", "stardist/he", seed=1, skill=0.73, facts=FACTS),
        cell("cyclegan", "stardist/he", seed=1, skill=0.62, facts=FACTS),
        cell("identity", "stardist/he", seed=3, skill=0.6, role="control", facts=FACTS),
        Scores(
            some.combination,
            (*some.images[:4], lost, *some.images[5:]),
            some.pooled,
            some.intervals,
            some.subsets,
            flags=("trained on the evaluation data: DeepLIIF",),
            facts=FACTS,
        ),
        cell("cyclegan", "hovernet/consep", seed=4, skill=0.5, flags=("weights not for commercial use: CC BY-NC-SA",)),
        Scores(
            Combination("DeepLIIF test", "ugatit", "hovernet/consep"), error="WeightsCorrupt: hash.\nFetch it again."
        ),
        cell(None, "oracle", skill=1.0, role="control"),
        Scores(
            Combination("DeepLIIF test", None, "empty", role="control"),
            pooled={"matching/f1@0.50": 0.0, "dice/dice_pooled": math.nan},
        ),
    )
    a, _, c, d, e, *_ = (one.combination.method for one in cells)
    differences = (
        Difference("DeepLIIF test", d, a, "matching/f1@0.50", 0.01, -0.012, 0.03, 11),
        Difference("DeepLIIF test", c, a, "matching/f1@0.50", -0.12, -0.15, -0.09, 12),
        Difference("DeepLIIF test", e, a, "matching/f1@0.50", -0.21, -0.26, -0.17, 12),
    )
    return Benchmark("ihc-tiles", cells, differences)


@pytest.fixture
def page_of(tmp_path):
    """Return a function from a benchmark to the text of its page."""
    pytest.importorskip("jinja2", reason="the report extra is not installed")
    return lambda benchmark: write_page(benchmark, tmp_path).read_text("utf-8")


def one_of(rows, method):
    return next(row for row in rows if row["method"] == method)


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


class TestPublished:
    def test_f1_fits_precision_and_recall_except_in_the_one_cell_that_has_a_note(self):
        odd = []
        for row in published("table1").rows:
            p, r, f1 = (row.values[f"matching/{key}@0.50"] for key in ("precision", "recall", "f1"))
            low, high = (2 * (p + d) * (r + d) / (p + r + 2 * d) for d in (-0.005, 0.005))
            if not low - 0.005 <= f1 <= high + 0.005:
                odd.append(row.method)
                assert "0.50" in row.notes["matching/f1@0.50"]
        assert odd == ["CycleGAN+HoVer-Net"]

    def test_accuracy_fits_precision_and_recall_in_every_row(self):
        for row in published("table1").rows:
            a, p, r = (row.values[f"matching/{key}@0.50"] for key in ("accuracy", "precision", "recall"))
            low, high = ((p + d) * (r + d) / (p + r + 2 * d - (p + d) * (r + d)) for d in (-0.005, 0.005))
            assert low - 0.005 <= a <= high + 0.005, row.method

    def test_the_two_identical_rows_of_table_2_have_a_note_each(self):
        rows = published("table2").rows
        noted = {row.method for row in rows if "copied" in row.notes.get("all", "")}
        same = {a.method for a in rows for b in rows if a is not b and a.values == b.values}
        assert same == noted == {"StarDist", "CycleGAN+StarDist"}

    @pytest.mark.parametrize(
        ("translator", "segmenter", "method"),
        [
            ("identity", "stardist/he", "StarDist"),
            (None, "deepliif", "DeepLIIF"),
            ("cyclegan/ours", "cellpose/nuclei", "CycleGAN+Cellpose"),
            ("ugatit", "hovernet", "U-GAT-IT+HoVer-Net"),
        ],
    )
    def test_a_row_corresponds_by_its_plugins(self, translator, segmenter, method):
        assert published("table1").row_of(Combination("any", translator, segmenter)).method == method

    def test_a_translation_that_the_paper_does_not_have_has_no_row(self):
        assert published("table1").row_of(Combination("any", "deconvolution", "stardist/he")) is None


class TestTables:
    def test_every_number_equals_that_of_the_records(self):
        benchmark = suite()
        rows = read_csv(table1(benchmark, "DeepLIIF test").to_csv())
        assert len(rows) == len(benchmark.cells)
        for one in benchmark.cells:
            row = one_of(rows, one.combination.method)
            for key in ("dice/dice_pooled", "matching/accuracy@0.50", "matching/recall@0.50", "matching/f1@0.50"):
                value = one.pooled.get(key, math.nan)
                assert row[key] == ("" if math.isnan(value) else repr(value))
                low, high = one.intervals.get(key, ("", ""))
                assert (row[f"{key} low"], row[f"{key} high"]) == (str(low), str(high))

    def test_the_papers_value_stands_beside_the_row_it_belongs_to(self):
        rows = read_csv(table1(suite(), "DeepLIIF test").to_csv())
        assert one_of(rows, "cyclegan + cellpose/nuclei")["published matching/f1@0.50"] == "0.55"
        assert one_of(rows, "identity + stardist/he")["published matching/f1@0.50"] == "0.49"
        assert one_of(rows, "deconvolution + stardist/he")["published matching/f1@0.50"] == ""

    def test_the_inconsistent_cell_is_explained_below_the_table(self):
        table = table1(suite(), "DeepLIIF test")
        (number,) = [i for i, note in enumerate(table.footnotes, 1) if "does not fit" in note]
        line = next(line for line in table.to_markdown().splitlines() if line.startswith("| cyclegan + hovernet"))
        assert line.endswith(f"| 0.44 <sup>{number}</sup> |")
        assert rf"0.44\textsuperscript{{{number}}}" in table.to_latex()

    def test_the_best_is_bold_the_undecided_are_marked_and_controls_do_not_compete(self):
        table = table1(suite(), "DeepLIIF test")
        f1 = [column.key for column in table.columns].index("matching/f1@0.50")
        marks = {row.cells[0].value: row.cells[f1].mark for row in table.rows}
        assert marks == {
            "deconvolution + stardist/he": "tied",
            "cyclegan + stardist/he": "",
            "cyclegan + cellpose/nuclei": "best",
            "cyclegan + hovernet/consep": "",
            "ugatit + hovernet/consep": "",
            "identity + stardist/he": "",
            "oracle": "",
            "empty": "",
        }
        assert "**0." in table.to_markdown()
        assert r"\textbf{0." in table.to_latex()

    def test_a_comparison_that_was_not_made_is_admitted(self):
        notes = " ".join(table1(suite(), "DeepLIIF test").notes)
        assert re.search(r"Not compared with the best .*: .*cyclegan \+ stardist/he", notes)

    def test_controls_come_last_and_apart(self):
        table = table1(suite(), "DeepLIIF test")
        assert [row.control for row in table.rows] == [False] * 5 + [True] * 3
        assert table.to_latex().count(r"\midrule") == 2
        assert "| *controls* |" in table.to_markdown()

    def test_flags_and_failures_are_footnotes_of_their_rows(self):
        table = table1(suite(), "DeepLIIF test")
        noted = {row.cells[0].value: " ".join(row.cells[0].notes) for row in table.rows}
        assert "trained on the evaluation data: DeepLIIF" in noted["cyclegan + cellpose/nuclei"]
        assert "1 of 12 pictures failed" in noted["cyclegan + cellpose/nuclei"]
        assert "tile_004.png: UnreadablePicture" in noted["cyclegan + cellpose/nuclei"]
        assert noted["ugatit + hovernet/consep"] == "Failed: WeightsCorrupt: hash."

    def test_table_2_has_the_subsets_and_says_what_it_is_not(self):
        table = table2(suite(), "DeepLIIF test")
        row = one_of(read_csv(table.to_csv()), "identity + stardist/he")
        pooled = next(one for one in suite().cells if one.combination.translator == "identity").pooled["detection/f1"]
        assert float(row["detection/f1"]) == pooled
        assert float(row["detection/f1 artifact"]) == pytest.approx(pooled - 0.1)
        assert (row["published all"], row["published artifact"]) == ("0.54", "0.22")
        assert "not comparable" in " ".join(table.notes)
        assert "copied" in row["notes"]

    def test_missing_and_undefined_values_are_a_dash(self):
        lines = table1(suite(), "DeepLIIF test").to_markdown().splitlines()
        assert next(line for line in lines if line.startswith("| empty")).split("|")[4].strip() == "–"
        assert Cell(math.nan).text == Cell(None).text == "–"
        assert Cell(0.5, (math.nan, 0.7)).interval_text == ""

    def test_a_method_alone_is_not_called_the_best(self):
        alone = Benchmark("one", (cell("identity", "baseline"),))
        assert {one.mark for row in table1(alone, "DeepLIIF test").rows for one in row.cells} == {""}


class TestEscaping:
    def test_latex_sets_a_name_as_it_is(self):
        text = escape_latex(r"50% & a_b \x{y} #1 $2 ~^ [z]")
        assert text == (r"50\% \& a\_b \textbackslash{}x\{y\} \#1 \$2 \textasciitilde{}\textasciicircum{} {[}z{]}")

    def test_markdown_shows_a_name_as_it_is(self):
        assert escape_markdown("a_b|c\n*d* <e>&`") == r"a\_b\|c \*d\* &lt;e&gt;&amp;\`"

    def test_every_row_has_every_column_whatever_the_names(self):
        row = Row((Cell(NASTY, notes=(NASTY,)), Cell(0.25, (0.2, 0.3), "tied")))
        table = Table("t", NASTY, (Column("m", "Method"), Column("v", NASTY, NASTY, True)), (row,), (NASTY,))
        lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
        latex = [line for line in table.to_latex().splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in latex} == {1}
        assert read_csv(table.to_csv())[0]["m"] == NASTY


class TestFiles:
    def test_each_table_is_written_in_three_forms_and_the_records_in_full(self, tmp_path):
        benchmark = suite()
        names = {path.name for path in (*write_tables(benchmark, tmp_path), *write_records(benchmark, tmp_path))}
        kinds = {f"table{n}-DeepLIIF-test.{suffix}" for n in (1, 2) for suffix in ("md", "csv", "tex")}
        assert names == kinds | {"combinations.csv", "images.csv", "differences.csv"}
        assert names == {path.name for path in tmp_path.iterdir()}
        images = read_csv((tmp_path / "images.csv").read_text("utf-8"))
        assert len(images) == sum(len(one.images) for one in benchmark.cells)
        first = benchmark.cells[0].images[0]
        assert float(images[0]["matching/f1@0.50"]) == first.values["matching/f1@0.50"]
        lost = next(row for row in images if row["status"] == "failed")
        assert lost["error"].startswith("UnreadablePicture")
        assert lost["matching/f1@0.50"] == ""
        differences = read_csv((tmp_path / "differences.csv").read_text("utf-8"))
        assert float(differences[0]["low"]) == -0.012

    def test_an_empty_suite_gives_empty_records_and_a_page_that_says_so(self, tmp_path, page_of):
        nothing = Benchmark("nothing", ())
        assert write_tables(nothing, tmp_path) == ()
        assert [len(path.read_text().splitlines()) for path in write_records(nothing, tmp_path)] == [1, 1, 1]
        assert "no cells" in page_of(nothing)

    def test_where_everything_failed_the_table_has_only_dashes_and_errors(self, page_of):
        failed = Benchmark("bad", (Scores(Combination("d", "x", "y"), error="MissingExtra: y needs torch."),))
        (table,) = tables(failed, "d")
        assert [one.text for one in table.rows[0].cells] == ["x + y", "0", *["–"] * 5]
        assert table.footnotes == ("Failed: MissingExtra: y needs torch.",)
        assert "MissingExtra: y needs torch." in page_of(failed)

    def test_two_data_sets_never_share_a_file(self):
        both = Benchmark("two", tuple(Scores(Combination(name, None, "s")) for name in ("a/b", "A b", "..", "ü")))
        assert slugs(both) == {"a/b": "a-b", "A b": "A-b-2", "..": "dataset", "ü": "dataset-2"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


class TestPage:
    def test_the_page_holds_the_numbers_the_flags_and_the_errors(self, page_of):
        benchmark = suite()
        text = " ".join(Page(page_of(benchmark)).text)
        best = benchmark.cells[3]
        assert f"{best.pooled['matching/f1@0.50']:.3f}" in text
        assert "trained on the evaluation data: DeepLIIF" in text
        assert "Fetch it again." in text
        assert "1000ded-dirty" in text
        assert "CC-BY-4.0" in text
        assert "does not fit the other values" in text

    def test_it_asks_nothing_of_the_network_and_shows_only_figures_that_exist(self, tmp_path, page_of):
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "figure3-DeepLIIF-test.png").write_bytes(b"")
        text = page_of(suite())
        links = Page(text).links
        assert [link for link in links if not link.startswith("#")] == ["figures/figure3-DeepLIIF-test.png"] * 2
        assert "http" not in text

    def test_names_cannot_become_markup(self, page_of):
        image = ImageScore(NASTY, "failed", NASTY, subset=NASTY)
        nasty = Scores(
            Combination(NASTY, NASTY, NASTY), (image,), flags=(NASTY,), facts={"data": {NASTY: NASTY}}, error=NASTY
        )
        difference = Difference(NASTY, NASTY, NASTY, NASTY, 0.0, 0.0, 0.0, 1)
        page = Page(page_of(Benchmark(NASTY, (nasty,), (difference,))))
        assert page.tags.count("script") == 1
        assert NASTY in page.text

    def test_a_long_table_of_pictures_is_cut_and_says_where_the_rest_is(self, page_of):
        images = tuple(ImageScore(f"{i}.png") for i in range(MAX_ROWS + 7))
        page = Benchmark("long", (Scores(Combination("d", None, "s"), images),))
        assert "7 further rows are in images.csv" in page_of(page)
