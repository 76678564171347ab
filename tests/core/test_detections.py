"""Cells as points: exported from real result folders, written in each format, scored by an evaluator worked by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from stainbridge.detections import (
    Detections,
    Template,
    TemplateTable,
    format_named,
    from_results,
    read_points,
    score_points,
    write_neutral,
)
from stainbridge.errors import ConfigError, DataCorrupt, DataUnavailable, NoPictures, ScaleUnknown

POINTS = Detections(
    {"a": np.array([[10.0, 20.5, 0.9], [0.0, 0.0, 0.5]]), "b c": np.zeros((0, 3))}, {"a": 0.25, "b c": 0.5}
)


def csv(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def files(tmp_path):
    def make(truth, found, subsets=None):
        paths = [csv(tmp_path / "truth.csv", truth), csv(tmp_path / "found.csv", found)]
        return (*paths, csv(tmp_path / "subsets.csv", subsets)) if subsets is not None else paths

    return make


class TestEvaluation:
    def test_a_case_worked_by_hand(self, files):
        # 4 um at 0.25 um per pixel are 16 px; the pair at exactly 16 px counts, the one at 16.1 does not.
        truth, found = files(
            "roi,x,y\na,100,100\na,200,100\na,300,300\nb,50,50\n",
            "roi,x,y,score\na,116,100,.9\na,216.1,100,.8\na,0,0,.1\nb,50,50,1\n",
        )
        (every,) = score_points(truth, found).subsets
        assert (every.regions, every.tp, every.fp, every.fn) == (2, 2, 2, 2)
        assert (every.precision, every.recall, every.f1) == (0.5, 0.5, 0.5)

    def test_one_cell_found_twice_is_one_hit_and_one_false_alarm(self, files):
        (every,) = score_points(*files("roi,x,y\na,5,5\n", "roi,x,y\na,5,6\na,5,4\n")).subsets
        assert (every.tp, every.fp, every.fn) == (1, 1, 0)

    def test_the_most_pairs_are_found_unless_greedy_is_asked_for(self, files):
        truth, found = files("roi,x,y\na,0,0\na,10,0\n", "roi,x,y\na,6,0\na,20,0\n")
        assert score_points(truth, found, radius_um=2.5).subsets[0].tp == 2
        truth, found = files("roi,x,y\na,0,0\na,10,0\n", "roi,x,y\na,6,0\na,21,0\n")
        assert score_points(truth, found, radius_um=1.5).subsets[0].tp == 1
        truth, found = files("roi,x,y\na,0,0\na,8,0\n", "roi,x,y\na,5,0\na,15,0\n")
        assert score_points(truth, found, radius_um=2.0).subsets[0].tp == 2
        assert score_points(truth, found, radius_um=2.0, greedy=True).subsets[0].tp == 1

    def test_points_of_different_regions_never_match(self, files):
        (every,) = score_points(*files("roi,x,y\na,5,5\nb,,\n", "roi,x,y\nb,5,5\n")).subsets
        assert (every.tp, every.fp, every.fn) == (0, 1, 1)

    def test_counts_are_pooled_by_subset(self, files):
        truth, found, subsets = files(
            "roi,x,y\na,5,5\nb,5,5\nc,5,5\n",
            "roi,x,y\na,5,5\nb,90,90\n",
            "roi,subset\na,regular\nb,artifact\nc,regular\n",
        )
        scores = score_points(truth, found, subsets=subsets)
        assert [(one.name, one.regions, one.tp, one.fp, one.fn) for one in scores.subsets] == [
            ("all", 3, 1, 1, 2),
            ("artifact", 1, 0, 1, 1),
            ("regular", 2, 1, 0, 1),
        ]
        assert [one.name for one in scores.regions] == ["a", "b", "c"]

    def test_a_region_without_detections_counts_as_missed(self, files):
        (every,) = score_points(*files("roi,x,y\na,5,5\nb,5,5\n", "roi,x,y\n")).subsets
        assert (every.tp, every.fn, every.recall, every.f1) == (0, 2, 0.0, 0.0)
        assert math.isnan(every.precision)

    def test_nothing_there_and_nothing_found_is_not_defined(self, files):
        scores = score_points(*files("roi,x,y\na,,\n", "roi,x,y\n"))
        assert math.isnan(scores.subsets[0].f1)
        assert scores.to_dict()["subsets"][0]["f1"] is None
        json.dumps(scores.to_dict(), allow_nan=False)

    def test_a_region_without_truth_is_an_error_that_says_what_to_do(self, files):
        with pytest.raises(DataCorrupt, match=r"(?s)1 regions have detections and no truth, such as 'b'.*b,,"):
            score_points(*files("roi,x,y\na,5,5\n", "roi,x,y\nb,5,5\n"))
        with pytest.raises(DataCorrupt, match="names no region"):
            score_points(*files("roi,x,y\n", "roi,x,y\n"))

    def test_the_numbers_say_what_they_are_not(self, files):
        scores = score_points(*files("roi,x,y\na,5,5\n", "roi,x,y\na,5,5\n"))
        assert scores.notice == "not the challenge's numbers; not comparable with the paper's Table 2"
        frame = scores.to_pandas()
        assert (frame.attrs["notice"], frame.f1.tolist()) == (scores.notice, [1.0])

    @pytest.mark.parametrize("wrong", [{"radius_um": 0}, {"radius_um": math.nan}, {"mpp": -1}, {"mpp": math.inf}])
    def test_a_scale_that_is_no_positive_number_is_refused(self, files, wrong):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = .*positive number of micrometres"):
            score_points(*files("roi,x,y\na,5,5\n", "roi,x,y\na,5,5\n"), **wrong)

    def test_a_region_without_subset_is_an_error(self, files):
        truth, found, subsets = files("roi,x,y\na,5,5\nb,5,5\n", "roi,x,y\n", "roi,subset\na,regular\n")
        with pytest.raises(DataCorrupt, match="names no subset for 1 of 2, such as 'b'"):
            score_points(truth, found, subsets=subsets)

    @given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), unique=True, max_size=12), st.floats(0.1, 5))
    def test_the_truth_as_detections_is_perfect_at_every_radius(self, points, radius_um):
        array = np.array([(*point, 1.0) for point in points], float).reshape(-1, 3)
        (every,) = score_points(Detections({"a": array}), Detections({"a": array}), radius_um=radius_um).subsets
        assert (every.tp, every.fp, every.fn) == (len(points), 0, 0)


class TestNeutralCsv:
    def test_what_is_written_is_read_back(self, tmp_path):
        path = write_neutral(POINTS, tmp_path / "new" / "d.csv")
        assert path.read_text() == "roi,x,y,score\na,10.0,20.5,0.9\na,0.0,0.0,0.5\n"
        assert np.array_equal(read_points(path, scored=True).points["a"], POINTS.points["a"])
        assert POINTS.to_pandas().shape == (2, 4)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("roi,x\na,1\n", "has no column 'y'"),
            ("", "Its first line must name roi, x, y; it is: empty"),
            ("roi,x,y\na,1,one\n", "line 2: y = 'one' is not a finite number"),
            ("roi,x,y\na,nan,1\n", "line 2: x = 'nan' is not a finite number"),
            ("roi,x,y\na,1,inf\n", "y = 'inf'"),
            ("roi,x,y\na,1,\n", "y = '' is not a finite number"),
            ("roi,x,y\na,-1,1\n", "x = -1 lies outside the picture"),
            ("roi,x,y\n,1,1\n", "line 2: the region has no name"),
            ("roi,x,y\na,1,1\nb,1,1\na,1.0,1\n", r"line 4: the point \(1, 1\) of 'a' is in line 2 too"),
            ("roi,x,y\na,1\n", "line 2, has fewer fields"),
        ],
    )
    def test_every_mistake_is_named_with_its_line(self, tmp_path, text, words):
        with pytest.raises(DataCorrupt, match=words):
            read_points(csv(tmp_path / "a.csv", text))

    def test_missing_and_binary_files_are_named(self, tmp_path):
        with pytest.raises(DataUnavailable, match=r"none.csv' does not exist"):
            read_points(tmp_path / "none.csv")
        (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataCorrupt, match="cannot be read as CSV"):
            read_points(tmp_path / "a.csv")


class TestFormats:
    def test_points_json_is_in_millimetres_one_file_for_each_region(self, tmp_path):
        written = format_named("points-json").write(POINTS, tmp_path)
        assert [path.relative_to(tmp_path).as_posix() for path in written] == [
            "a/detected-lymphocytes.json",
            "b c/detected-lymphocytes.json",
        ]
        document = json.loads(written[0].read_text())
        assert document["type"] == "Multiple points"
        assert document["version"] == {"major": 1, "minor": 0}
        assert document["points"][0] == {"name": "Point 0", "point": [0.0025, 0.005125, 0.0], "probability": 0.9}
        assert json.loads(written[1].read_text())["points"] == []

    def test_a_region_without_scale_cannot_be_in_millimetres(self, tmp_path):
        with pytest.raises(ScaleUnknown, match="'a' has no pixel size; millimetres need one"):
            format_named("points-json").write(Detections({"a": np.ones((1, 3))}), tmp_path)
        assert not list(tmp_path.rglob("*.json"))

    def test_a_template_makes_one_file_for_all_or_one_for_each(self, tmp_path):
        toml = csv(tmp_path / "t.toml", 'file = "all.txt"\nheader = "H"\nline = "{roi};{index};{x:.1f};{y:.2f}"\n')
        (path,) = format_named("lyon19", toml).write(POINTS, tmp_path)
        assert path.read_text() == "H\na;0;10.0;20.50\na;1;0.0;0.00\n"
        each = Template(TemplateTable(file="{roi}.csv", line="{x:.4f} {score:.1f}", footer="END", units="mm"))
        written = each.write(POINTS, tmp_path)
        assert [path.name for path in written] == ["a.csv", "b c.csv"]
        assert written[0].read_text() == "0.0025 0.9\n0.0000 0.5\nEND\n"
        assert written[1].read_text() == "END\n"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('line = "{scor}"', "has the field 'scor'. Did you mean 'score'"),
            ('line = "{x.__class__}"', "has the field 'x.__class__'"),
            ('line = "{x"', "is no pattern"),
            ('line = "{x:q}"', "cannot be filled in"),
            ('line = "{x}"\nfile = "{x}.csv"', "file = '{x}.csv' has the field 'x'"),
            ('line = "{x}"\nunit = "mm"', "t.toml: unknown key 'unit'. Did you mean 'units'"),
            ('line = "{x}"\nunits = "um"', "units = 'um'"),
            ('header = "x"', "lacks the key 'line'"),
            ("line =", "is not valid TOML"),
        ],
    )
    def test_every_mistake_in_a_template_is_named(self, tmp_path, text, words):
        with pytest.raises(ConfigError, match=words):
            format_named("template", csv(tmp_path / "t.toml", text))

    def test_lyon19_says_why_it_needs_a_template(self):
        with pytest.raises(
            ConfigError, match="Lyon19Template needs a template file: the format is stated on the chall"
        ):
            format_named("lyon19")

    def test_an_unknown_format_gets_the_nearest(self):
        with pytest.raises(
            ConfigError, match=r"No format of detections is named 'point-json'.*Did you mean 'points-json'"
        ):
            format_named("point-json")

    @pytest.mark.parametrize("roi", ["../evil", "/evil", ".hidden", "a\\b"])
    def test_a_region_never_names_a_file_outside(self, tmp_path, roi):
        points = Detections({roi: np.ones((1, 3))}, {roi: 1.0})
        with pytest.raises(DataCorrupt, match="cannot name a file"):
            format_named("points-json").write(points, tmp_path / "out")
        assert list(tmp_path.rglob("*")) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on one picture, that picture with its truth, and the result."""
    from stainbridge import RunConfig, run, save
    from stainbridge.testing import synthetic_ihc

    out = tmp_path_factory.mktemp("run")
    sample = synthetic_ihc(shape=(160, 160), nuclei=12, positive_fraction=0.5, seed=2)
    result = run(sample.source, config=RunConfig(segmenter="baseline/ihc", translator="identity", bootstraps=0))
    save(result, out / "folder")
    return out, sample, result


class TestExport:
    def test_positive_nuclei_are_points_at_their_centroids(self, run):
        out, _, result = run
        found = from_results([out])
        (roi,) = found.points
        assert (roi, found.mpp[roi]) == (result.source.name, 0.25)
        positive = result.nuclei.positive
        assert 0 < positive.sum() < len(positive)
        wanted = np.stack([result.nuclei.x, result.nuclei.y, result.nuclei.p_positive], axis=1)
        assert np.array_equal(found.points[roi], wanted[positive])
        assert np.array_equal(from_results([out / "folder"], negatives=True).points[roi], wanted)

    def test_the_points_lie_on_the_true_cells(self, run):
        out, sample, _ = run
        from scipy.ndimage import center_of_mass

        label = sample.truth.array
        centres = np.array(center_of_mass(label > 0, label, np.arange(1, 13)))[sample.positive][:, ::-1]
        truth = Detections({"synthetic_ihc": np.column_stack([centres, np.ones(len(centres))])})
        (every,) = score_points(truth, from_results([out])).subsets
        assert every.f1 > 0.8

    def test_two_results_of_one_picture_are_refused(self, run):
        out, _, _ = run
        with pytest.raises(DataCorrupt, match="Two results are of pictures named 'synthetic_ihc'"):
            from_results([out, out / "folder"])

    def test_a_folder_without_results_is_named(self, tmp_path):
        Pillow.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
        with pytest.raises(NoPictures, match="holds no result"):
            from_results([tmp_path])


class TestCommands:
    @pytest.fixture
    def call(self):
        from typer.testing import CliRunner

        from stainbridge.cli_datasets import datasets_app, detections_app

        apps = {"datasets": datasets_app, "detections": detections_app}
        return lambda app, *words: CliRunner().invoke(apps[app], [str(word) for word in words])

    def test_list_shows_cards(self, call, tmp_path):
        card = '[datasets.mine]\nsummary = "A set"\nlayout = "folder"\nstain = "he"\nlicence = "CC0-1.0"\ncommercial = true\n'
        ended = call("datasets", "list", "--registry", csv(tmp_path / "r.toml", card), "--json")
        assert json.loads(ended.stdout)["mine"]["licence"] == "CC0-1.0"
        assert "A set" in call("datasets", "list", "--registry", tmp_path / "r.toml").stdout

    def test_check_reads_everything_and_says_what_is_wrong(self, call, tmp_path):
        Pillow.fromarray(np.full((4, 5, 3), 9, np.uint8)).save(tmp_path / "a.png")
        np.save(tmp_path / "a_labels.npy", np.eye(4, 5, dtype=np.int32))
        words = ("check", "mine", "--path", tmp_path, "--layout", "folder", "--mpp", "0.25", "--stain", "he")
        ended = call("datasets", *words)
        assert (ended.exit_code, "1 pictures of he, 1 nuclei" in ended.stdout) == (0, True)
        np.save(tmp_path / "a_labels.npy", np.eye(3, dtype=np.int32))
        ended = call("datasets", *words)
        assert (ended.exit_code, "a: 'a_labels.npy' is 3 x 3 px" in ended.stdout) == (1, True)

    def test_score_prints_the_notice(self, call, files):
        truth, found = files("roi,x,y\na,5,5\n", "roi,x,y\na,5,5\n")
        ended = call("detections", "score", truth, found)
        assert "within 4 um; not the challenge's numbers" in ended.stdout
        assert json.loads(call("detections", "score", truth, found, "--json").stdout)["subsets"][0]["f1"] == 1.0

    def test_export_writes_the_positive_nuclei(self, call, run, tmp_path):
        ended = call("detections", "export", run[0], "--out", tmp_path)
        assert ended.stdout.strip() == str(tmp_path / "detections.csv")
        assert len(read_points(tmp_path / "detections.csv", scored=True)) == int(run[2].nuclei.positive.sum())

    def test_fetch_says_why_it_cannot(self, call, tmp_path):
        card = '[datasets.mine]\nsummary = "A set"\nlayout = "folder"\nstain = "he"\nlicence = "CC0-1.0"\ncommercial = true\n'
        ended = call("datasets", "fetch", "mine", "--registry", csv(tmp_path / "r.toml", card), "--data-dir", tmp_path)
        assert isinstance(ended.exception, DataUnavailable)
        assert "mine has no archives" in str(ended.exception)
