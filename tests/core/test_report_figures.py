"""Figures of a benchmark: what is drawn is what the records say."""

import numpy as np
import pytest

from stainbridge.errors import ConfigError, ContractViolation
from stainbridge.report.panels import FN, FP, TP, TRUTH, WINDOW_PX, Panel, judge, paint, window
from stainbridge.scores import Benchmark, Combination, Difference, Scores

pytest.importorskip("matplotlib", reason="the report extra is not installed")

from stainbridge.report.curves import draw_curves, draw_intervals
from stainbridge.report.drawing import COLOURS, GREY, styles, write_figure
from stainbridge.report.figures import write_figures
from stainbridge.report.panels import draw_panels

F1 = "matching/f1@0.50"


def scores(segmenter, level, *, translator="identity", role="method", dataset="d"):
    pooled = {f"matching/accuracy@{pct / 100:.2f}": level * (100 - pct) / 50 for pct in range(50, 101, 5)}
    pooled |= {F1: level}
    spread = {key: (value - 0.01, value + 0.01) for key, value in pooled.items()}
    return Scores(Combination(dataset, translator, segmenter, role=role), pooled=pooled, intervals=spread)


def suite(*cells, differences=()):
    return Benchmark("s", cells, differences)


def square(y, x, side, shape=(64, 64), label=1):
    labels = np.zeros(shape, np.int32)
    labels[y : y + side, x : x + side] = label
    return labels


def names_in(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


class TestCurves:
    def test_each_line_runs_through_the_accuracies_of_its_cell(self):
        low, high = scores("a", 0.4), scores("b", 0.8)
        first, second = draw_curves(suite(low, high), "d").axes[0].lines
        for line, cell in ((first, high), (second, low)):
            assert line.get_xdata() == pytest.approx([pct / 100 for pct in range(50, 101, 5)])
            assert list(line.get_ydata()) == [cell.pooled[f"matching/accuracy@{x:.2f}"] for x in line.get_xdata()]

    def test_twenty_methods_look_different_and_controls_are_grey(self):
        cells = [scores(f"s{i % 5}", 0.5, translator=f"t{i // 5}") for i in range(20)]
        found = styles([*cells, scores("oracle", 1.0, role="control", translator=None)])
        assert len(set(found.values())) == 21
        assert found["oracle"].colour == GREY
        assert {one.colour for name, one in found.items() if name.endswith("+ s0")} == {COLOURS[0]}

    def test_a_cell_without_values_is_left_out(self):
        failed = Scores(Combination("d", "identity", "broken"), error="no")
        assert len(draw_curves(suite(failed, scores("a", 0.4)), "d").axes[0].lines) == 1

    def test_no_values_at_all_is_said(self):
        failed = Scores(Combination("d", "identity", "broken"), error="no")
        assert "no method has values" in names_in(draw_curves(suite(failed), "d"))


class TestIntervals:
    cells = scores("a", 0.4), scores("b", 0.8), scores("c", 0.6)

    def test_a_difference_is_turned_round_where_it_was_made_the_other_way(self):
        other_way = Difference("d", "identity + a", "identity + b", F1, -0.4, -0.5, -0.3, 9)
        figure = draw_intervals(suite(*self.cells, differences=(other_way,)), "d", reference="identity + a")
        bars = [line.get_xdata() for line in figure.axes[1].lines]
        assert [list(bar) for bar in bars[1:]] == [[0.3, 0.5], [0.4]]

    def test_only_a_difference_whose_interval_leaves_out_zero_is_filled(self):
        made = (
            Difference("d", "identity + b", "identity + a", F1, 0.4, 0.3, 0.5, 9),
            Difference("d", "identity + c", "identity + a", F1, 0.1, -0.1, 0.3, 9),
        )
        points = draw_intervals(suite(*self.cells, differences=made), "d").axes[1].lines[2::2]
        assert [point.get_markerfacecolor() == "white" for point in points] == [False, True]

    def test_without_comparisons_there_is_one_plot(self):
        assert len(draw_intervals(suite(*self.cells), "d").axes) == 1

    def test_an_unknown_reference_is_refused_with_the_nearest_name(self):
        with pytest.raises(ConfigError, match=r"Did you mean 'identity \+ a'"):
            draw_intervals(suite(*self.cells), "d", reference="identity+a")


class TestPanels:
    def test_red_over_a_missed_nucleus_stays_red(self):
        truth, found = square(4, 4, 20), square(4, 4, 12)
        assert judge(truth, found).counts == (0, 1, 1)
        painted = paint(np.full((64, 64, 3), 200, np.uint8), truth, found).astype(int)
        assert painted[10, 10].tolist() == np.rint(0.65 * 200 + 0.35 * np.array(FP)).tolist()
        assert painted[20, 20].tolist() == np.rint(0.65 * 200 + 0.35 * np.array(FN)).tolist()

    def test_the_outline_of_a_missed_nucleus_lies_over_what_was_invented_there(self):
        painted = paint(np.full((64, 64, 3), 200, np.uint8), square(4, 4, 20), square(4, 4, 12))
        assert tuple(painted[4, 4]) == FN
        assert tuple(painted[15, 15]) == FP

    def test_every_pixel_of_a_nucleus_has_its_colour_and_no_other(self):
        truth, ihc = square(4, 4, 20), np.full((64, 64, 3), 200, np.uint8)
        painted = paint(ihc, truth, truth)
        assert np.array_equal((painted != 200).any(2), truth > 0)
        assert int((painted == TP).all(2).sum()) == 4 * 19

    def test_ids_with_gaps_are_no_objects(self):
        assert judge(square(4, 4, 8, label=7), square(4, 4, 8, label=3)).counts == (1, 0, 0)

    @pytest.mark.parametrize(("found", "counts"), [(square(0, 0, 0), (0, 0, 1)), (square(30, 30, 5), (0, 1, 1))])
    def test_what_is_missed_is_counted(self, found, counts):
        assert judge(square(4, 4, 8), found).counts == counts

    def test_a_large_picture_shows_its_densest_window(self):
        labels = np.zeros((1200, 1500), np.int32)
        for number, at in enumerate(range(0, 300, 10), 1):
            labels[700 + at // 2, 900 + at] = number
        labels[5, 5] = 31
        y, x, height, width = window(labels)
        assert (height, width) == (WINDOW_PX, WINDOW_PX)
        assert len(np.unique(labels[y : y + height, x : x + width])) == 1 + 30

    @pytest.mark.parametrize("shape", [(512, 512), (20, 900), (900, 20), (513, 700)])
    def test_a_window_lies_inside_the_picture(self, shape):
        y, x, height, width = window(square(shape[0] - 2, shape[1] - 2, 2, shape))
        assert 0 <= y <= y + height <= shape[0]
        assert 0 <= x <= x + width <= shape[1]

    def test_a_single_picture_shows_ihc_he_truth_and_method_with_its_counts(self):
        truth = square(4, 4, 20)
        ihc, he = np.full((64, 64, 3), 200, np.uint8), np.full((32, 32, 3), 90, np.uint8)
        figure = draw_panels([Panel("p.png", ihc, truth, {"gan": he}, {"gan + s": truth})], title="d")
        shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
        assert [picture.shape for picture in shown] == [(64, 64, 3), (32, 32, 3), (64, 64, 3), (64, 64, 3)]
        assert tuple(shown[2][4, 4]) == TRUTH
        assert "gan + s\nTP 1  FP 0  FN 0" in [axes.get_title(loc="left") for axes in figure.axes]

    def test_the_he_of_a_window_is_the_same_field_on_its_own_grid(self):
        ihc = np.zeros((1024, 1024, 3), np.uint8)
        ihc[..., 0] = np.arange(1024)[:, None] // 4
        panel = Panel("p", ihc, square(800, 800, 20, (1024, 1024)), {"gan": ihc[::2, ::2]})
        figure = draw_panels([panel])
        whole, half = (axes.images[0].get_array() for axes in figure.axes[:2])
        assert np.array_equal(whole[::2, ::2], half)

    def test_labels_of_another_size_are_refused(self):
        with pytest.raises(ContractViolation, match=r"'p': labels of 'gan \+ s' are \(9, 9\), the picture is \(8, 8\)"):
            Panel(
                "p", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.int32), {}, {"gan + s": square(0, 0, 1, (9, 9))}
            )


class TestFiles:
    def test_names_that_mean_something_to_matplotlib_are_shown_as_they_are(self, tmp_path):
        # Formula, hidden label, letters that the font does not have.
        cells = [scores(name, 0.5) for name in ("$\\frac{x$", "_hidden", "核", "a" * 200)]
        benchmark = suite(
            *[Scores(Combination("$d_", None, one.combination.segmenter), pooled=one.pooled) for one in cells]
        )
        figure = draw_curves(benchmark, "$d_")
        paths = write_figure(figure, tmp_path / "odd")
        assert [path.suffix for path in paths] == [".png", ".pdf"]
        assert any("_hidden" in name for name in names_in(figure))

    def test_the_same_benchmark_gives_the_same_bytes(self, tmp_path):
        benchmark = suite(scores("a", 0.4), scores("b", 0.8))
        one, two = (write_figures(benchmark, tmp_path / name) for name in "ab")
        assert [path.name for path in one] == ["figure3-d.png", "figure3-d.pdf", "intervals-d.png", "intervals-d.pdf"]
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
        assert not any(b"CreationDate" in path.read_bytes() for path in one)

    def test_the_users_matplotlib_is_left_alone(self, tmp_path):
        import matplotlib

        before = dict(matplotlib.rcParams)
        write_figures(suite(scores("a", 0.4)), tmp_path)
        assert dict(matplotlib.rcParams) == before

    def test_an_empty_suite_has_no_figures(self, tmp_path):
        assert write_figures(suite(), tmp_path) == ()
