"""Tables, figures and the page of a benchmark say what its records say."""

import csv
import io
import math
import re

import numpy as np
import pytest

from stainbridge.report.figures import write_figures
from stainbridge.report.grid import escape_latex, escape_markdown
from stainbridge.report.page import write_page
from stainbridge.report.panels import FN, FP, TP, Panel, judge, paint
from stainbridge.report.published import published
from stainbridge.report.tables import table1, table2, write_records, write_tables
from stainbridge.scores import Benchmark, Combination, Difference, ImageScore, Scores

F1 = "matching/f1@0.50"


def rates(tp, fp, fn):
    return {
        "accuracy": tp / (tp + fp + fn),
        "precision": tp / (tp + fp) if tp else 0.0,
        "recall": tp / (tp + fn) if tp else 0.0,
        "f1": 2 * tp / (2 * tp + fp + fn),
    }


def scores(translator, segmenter, tp, *, role="method", dataset="tiles", flags=(), failed=0, subsets=None):
    """Make a cell with `tp` of 100 nuclei found at IoU 0.5, and fewer above."""
    pooled = {"dice/dice_pooled": tp / 100, "detection/f1": tp / 100}
    for pct in range(50, 101, 5):
        found = max(0, tp - (pct - 50))
        pooled |= {
            f"matching/{name}@{pct / 100:.2f}": value for name, value in rates(found, 100 - found, 100 - found).items()
        }
    images = [
        ImageScore(f"p{k}", values=dict(pooled), nuclei=100, seconds={"segment": 1.0}, peak_mb=100.0) for k in range(3)
    ]
    images += [ImageScore(f"x{k}", "failed", "UnreadablePicture: <b>cut</b> short") for k in range(failed)]
    spread = {key: (value - 0.05, value + 0.05) for key, value in pooled.items()}
    facts = {"data": {"name": dataset, "licence": "CC0"}, "software": {"commit": "abc"}, "device": "cpu"}
    named = Combination(dataset, translator, segmenter, None, role)
    return Scores(named, tuple(images), pooled, spread, subsets or {}, tuple(flags), facts)


@pytest.fixture(scope="module")
def found():
    cells = (
        scores("identity", "stardist/he", 60),
        scores(
            "cyclegan/own",
            "hovernet/consep",
            80,
            flags=("hovernet/consep was trained on the evaluation data: x_y & z",),
        ),
        scores("cyclegan/own", "cellpose/cyto", 78, failed=2),
        scores(None, "oracle", 100, role="control"),
        Scores(Combination("tiles", "identity", "broken"), error="MissingExtra: no"),
    )
    a, b = cells[1].combination.method, cells[2].combination.method
    differences = (
        Difference("tiles", b, a, F1, -0.02, -0.06, 0.02, 3),
        Difference("tiles", cells[0].combination.method, a, F1, -0.2, -0.3, -0.1, 3),
    )
    return Benchmark("fake", cells, differences)


def cells_of(table, method):
    return next(row.cells for row in table.rows if str(row.cells[0].value).startswith(method))


def test_the_numbers_of_table_1_are_those_of_the_records(found):
    table = table1(found, "tiles")
    keys = [column.key for column in table.columns]
    row = cells_of(table, "cyclegan/own + cellpose/cyto")
    assert row[keys.index(F1)].value == found.cells[2].pooled[F1]
    assert row[keys.index(F1)].interval == found.cells[2].intervals[F1]


def test_the_best_method_is_marked_what_cannot_be_told_from_it_is_tied_and_controls_do_not_compete(found):
    table = table1(found, "tiles")
    at = [column.key for column in table.columns].index(F1)
    marks = {str(row.cells[0].value): row.cells[at].mark for row in table.rows}
    assert next(mark for name, mark in marks.items() if "hovernet" in name) == "best"
    assert next(mark for name, mark in marks.items() if "cellpose" in name) == "tied"
    assert next(mark for name, mark in marks.items() if "stardist" in name) == ""
    assert next(mark for name, mark in marks.items() if "oracle" in name) == ""


def test_the_papers_inconsistent_cell_is_marked():
    row = next(row for row in published("table1").rows if row.method == "CycleGAN+HoVer-Net")
    assert row.values[F1] == 0.44
    assert ".50" in row.notes[F1]
    p, r = row.values["matching/precision@0.50"], row.values["matching/recall@0.50"]
    assert 2 * p * r / (p + r) == pytest.approx(0.50, abs=0.005)


def test_nine_of_the_papers_ten_rows_agree_with_themselves():
    odd = []
    for row in published("table1").rows:
        p, r, f1 = (row.values[f"matching/{name}@0.50"] for name in ("precision", "recall", "f1"))
        if abs(2 * p * r / (p + r) - f1) > 0.01:
            odd.append(row.method)
    assert odd == ["CycleGAN+HoVer-Net"]


def test_the_papers_numbers_stand_beside_the_same_combination(found):
    text = table1(found, "tiles").to_markdown()
    line = next(line for line in text.splitlines() if "hovernet" in line)
    assert "0.44" in line
    paper = next(row for row in published("table1").rows if row.method == "CycleGAN+HoVer-Net")
    assert paper.notes[F1][:30] in text


def test_flags_and_failures_are_told(found):
    text = table1(found, "tiles").to_markdown()
    assert "trained on the evaluation data" in text
    assert "MissingExtra: no" in text


def test_table_2_has_a_column_for_each_subset():
    subsets = {"regular": {"detection/f1": 0.7}, "clustered": {"detection/f1": 0.6}}
    found = Benchmark("s", (scores("identity", "stardist/he", 60, dataset="lyon19", subsets=subsets),))
    row = cells_of(table2(found, "lyon19"), "identity")
    values = [cell.value for cell in row]
    assert {0.6, 0.7} <= set(values)


def test_csv_reads_back(found, tmp_path):
    write_tables(found, tmp_path / "tables")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "table1-tiles.csv").read_text("utf-8"))))
    ours = next(row for row in rows if "hovernet" in next(iter(row.values())))
    assert float(ours[F1]) == found.cells[1].pooled[F1]
    write_records(found, tmp_path)
    images = list(csv.DictReader(io.StringIO((tmp_path / "images.csv").read_text("utf-8"))))
    assert len(images) == sum(len(cell.images) for cell in found.cells)


def test_text_cannot_break_a_table():
    assert escape_latex("50 % & a_b #1 $x$") == r"50 \% \& a\_b \#1 \$x\$"
    assert "|" not in re.sub(r"\\\|", "", escape_markdown("a|b"))


def test_latex_has_as_many_cells_in_each_row(found):
    body = [line for line in table1(found, "tiles").to_latex().splitlines() if line.rstrip().endswith(r"\\")]
    counts = {len(re.findall(r"(?<!\\)&", line)) for line in body if "multicolumn" not in line}
    assert len(counts) == 1


@pytest.mark.parametrize("cells", [(), (Scores(Combination("tiles", "identity", "broken"), error="x"),)])
def test_nothing_to_show_is_no_error(cells, tmp_path):
    empty = Benchmark("none", cells)
    write_tables(empty, tmp_path / "tables")
    write_records(empty, tmp_path)


def test_nan_is_a_dash(found):
    pooled = {**found.cells[0].pooled, F1: math.nan}
    one = Scores(found.cells[0].combination, found.cells[0].images, pooled)
    table = table1(Benchmark("nan", (one,)), "tiles")
    at = [column.key for column in table.columns].index(F1)
    assert cells_of(table, "identity")[at].text in ("-", "–", "—")


class TestPanels:
    truth = np.zeros((40, 40), np.int32)
    truth[2:12, 2:12], truth[20:30, 20:30] = 1, 2
    found = np.zeros((40, 40), np.int32)
    found[2:12, 2:12], found[2:12, 25:35] = 1, 2

    def test_found_is_blue_invented_red_and_missed_green(self):
        assert judge(self.truth, self.found).counts == (1, 1, 1)
        painted = paint(np.full((40, 40, 3), 255, np.uint8), self.truth, self.found).astype(int)
        for (y, x), colour in {(2, 2): TP, (2, 25): FP, (20, 20): FN}.items():
            assert painted[y, x].tolist() == list(colour)
        assert painted[35, 5].tolist() == [255, 255, 255]


def test_figures_and_page_are_written_and_the_page_asks_nobody(found, tmp_path):
    pytest.importorskip("matplotlib", reason="the report extra is not installed")
    panel = Panel("p0", np.full((40, 40, 3), 255, np.uint8), TestPanels.truth, {}, {"identity + x": TestPanels.found})
    figures = write_figures(found, tmp_path / "figures", {"tiles": [panel]})
    assert {path.stem for path in figures} == {"figure2-tiles", "figure3-tiles", "intervals-tiles", "detection-tiles"}
    assert all(path.stat().st_size > 1000 for path in figures)
    text = write_page(found, tmp_path).read_text("utf-8")
    assert "&lt;b&gt;cut&lt;/b&gt;" in text
    assert "<b>cut</b>" not in text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert "figures/figure3-tiles.png" in text
    assert f"{found.cells[1].pooled[F1]:.3f}" in text
