"""The commands as a person types them: data on stdout, messages on stderr, exit codes, nothing half-written."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as Pillow

import stainbridge
from stainbridge import cli
from stainbridge.testing.synthetic import synthetic_ihc

RESULT = {
    "labels.ome.tif",
    "nuclei.csv",
    "nuclei.geojson",
    "nuclei.parquet",
    "overlay.png",
    "summary.json",
    "virtual_he.png",
}


@pytest.fixture
def stain(monkeypatch, capsys):
    """Run the command line; return (exit code, stdout, stderr)."""

    def call(*arguments):
        if arguments[0] in ("run", "demo") and not {"--segmenter", "--config"} & {str(one) for one in arguments}:
            arguments = (*arguments, "--segmenter", "baseline")  # the default depends on what is installed
        monkeypatch.setattr(sys, "argv", ["stainbridge", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("a", "b")):
        sample = synthetic_ihc(shape=(256, 300), nuclei=30, seed=seed)
        Pillow.fromarray(sample.source.pixels).save(folder / f"{name}.png")
    return folder


def ledger(out):
    with open(out / "ledger.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_pictures_becomes_a_folder_of_results(stain, pictures, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = stain("run", pictures, "--mpp", 0.25, "-o", out)
    assert code == 0
    assert "a.png" in stdout
    assert "a.png" not in stderr or "failed" not in stderr
    for name in ("a", "b"):
        assert {path.name for path in (out / name).iterdir()} == RESULT
    rows = ledger(out)
    assert [row["status"] for row in rows] == ["done", "done"]
    summary = json.loads((out / "a" / "summary.json").read_text())
    assert int(rows[0]["nuclei"]) == summary["scores"]["counts"]["total"] > 15
    assert len(summary["provenance"]["input"]["sha256"]) == 64
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_json_on_stdout_is_json(stain, pictures, tmp_path):
    code, stdout, _ = stain("run", pictures / "a.png", "--mpp", 0.25, "-o", tmp_path / "out", "--json")
    assert code == 0
    (entry,) = json.loads(stdout)
    assert entry["status"] == "done"
    assert entry["nuclei"] > 15


def test_the_command_and_python_give_the_same_nuclei(stain, pictures, tmp_path):
    stain("run", pictures / "a.png", "--mpp", 0.25, "-o", tmp_path / "out", "--classifier", "dab")
    result = stainbridge.run(pictures / "a.png", segmenter="baseline", classifier="dab", mpp=0.25)
    saved = json.loads((tmp_path / "out" / "a" / "summary.json").read_text())
    assert saved["scores"] == json.loads(json.dumps(result.scores))


def test_two_runs_write_the_same_bytes(stain, pictures, tmp_path):
    for name in ("one", "two"):
        stain("run", pictures / "a.png", "--mpp", 0.25, "-o", tmp_path / name)
    for name in RESULT:
        assert (tmp_path / "one" / "a" / name).read_bytes() == (tmp_path / "two" / "a" / name).read_bytes()


def test_a_bad_picture_is_a_row_and_the_others_go_on(stain, pictures, tmp_path):
    bad = tmp_path / "pictures"
    bad.mkdir()
    whole = (pictures / "a.png").read_bytes()
    (bad / "a_truncated.png").write_bytes(whole[: len(whole) // 2])
    (bad / "b_text.png").write_text("no picture")
    Pillow.fromarray(np.zeros((20, 20), np.uint8)).save(bad / "c_grey.png")
    (bad / "d_good.png").write_bytes(whole)
    code, _, stderr = stain("run", bad, "--mpp", 0.25, "-o", tmp_path / "out")
    assert code == 1
    rows = {row["folder"]: row for row in ledger(tmp_path / "out")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a_truncated": "failed",
        "b_text": "failed",
        "c_grey": "failed",
        "d_good": "done",
    }
    assert rows["a_truncated"]["error"].startswith("UnreadablePicture")
    assert rows["c_grey"]["error"].startswith("UnsupportedPicture")
    assert "c_grey.png" in stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["d_good", "ledger.csv"]


def test_a_picture_without_a_pixel_size_names_mpp(stain, pictures, tmp_path):
    code, _, stderr = stain("run", pictures / "a.png", "-o", tmp_path / "out")
    assert code == 1
    assert "ScaleUnknown" in stderr
    assert "--mpp" in stderr
    assert ledger(tmp_path / "out")[0]["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--segmenter", "baselin"], "Did you mean 'baseline'"),
        (["--segmenter", "baseline/hee"], "Did you mean 'baseline/he'"),
        (["--set", "classifier.hue_valu=0.1"], "Did you mean 'hue_value'"),
        (["--set", "sed=3"], "Did you mean 'seed'"),
        (["--set", "nonsense"], "expected KEY=VALUE"),
        (["--config", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--set", "mpp=250"], "between 0.05 and 20.0; a 40x scan has about 0.25"),
        (["--registry", "nowhere.toml"], "nowhere.toml"),
        (["--device", "gpu"], "device"),
    ],
)
def test_what_is_misspelt_is_said_before_anything_is_computed(stain, pictures, tmp_path, arguments, message):
    code, stdout, stderr = stain("run", pictures, "--mpp", 0.25, "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert message in stderr
    assert stdout == ""
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_an_error(stain, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, stderr = stain("run", tmp_path / "empty", "--mpp", 0.25, "-o", tmp_path / "out")
    assert code == 2
    assert stderr.startswith("NoPictures")
    assert not (tmp_path / "out").exists()


def test_results_are_not_replaced_unless_asked(stain, pictures, tmp_path):
    out = tmp_path / "out"
    arguments = ["run", pictures / "a.png", "--mpp", 0.25, "-o", out]
    stain(*arguments)
    before = (out / "a" / "summary.json").read_bytes()
    code, _, stderr = stain(*arguments)
    assert code == 2
    assert "OutputExists" in stderr
    assert "--resume" in stderr
    assert (out / "a" / "summary.json").read_bytes() == before
    assert stain(*arguments, "--overwrite", "--set", "seed=5")[0] == 0
    assert (out / "a" / "summary.json").read_bytes() != before


def test_an_output_that_is_a_file_is_refused(stain, pictures, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, _, stderr = stain("run", pictures, "--mpp", 0.25, "-o", tmp_path / "out", "--overwrite")
    assert code == 2
    assert "is a file" in stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_resume_does_what_is_missing(stain, pictures, tmp_path):
    out = tmp_path / "out"
    stain("run", pictures / "a.png", "--mpp", 0.25, "-o", out)
    stamp = (out / "a" / "summary.json").stat().st_mtime_ns
    assert stain("run", pictures, "--mpp", 0.25, "-o", out, "--resume")[0] == 0
    assert [row["status"] for row in ledger(out)] == ["kept", "done"]
    assert (out / "a" / "summary.json").stat().st_mtime_ns == stamp


@pytest.mark.heavy
def test_a_disk_that_is_full_is_a_typed_failure_and_leaves_nothing(pictures, tmp_path):
    code = (
        "import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from stainbridge.cli import main; sys.argv[0] = 'stainbridge'; main()"
    )
    arguments = [
        "run",
        pictures / "a.png",
        "--mpp",
        "0.25",
        "--segmenter",
        "baseline",
        "-o",
        tmp_path / "out",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "WriteFailed" in json.loads(done.stdout)[0]["error"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ledger.csv"]


def test_a_run_can_be_written_down_as_toml(stain, pictures, tmp_path):
    (tmp_path / "run.toml").write_text(
        'mpp = 0.25\nsegmenter = "baseline"\nclassifier = "dab"\n[translator]\nname = "deconvolution"\n'
    )
    code, *_ = stain("run", pictures / "a.png", "--config", tmp_path / "run.toml", "-o", tmp_path / "out")
    assert code == 0
    plugins = json.loads((tmp_path / "out" / "a" / "summary.json").read_text())["provenance"]["plugins"]
    assert (plugins["translator"]["name"], plugins["classifier"]["name"]) == ("deconvolution", "dab")


def test_rescore_changes_the_threshold_without_the_picture(stain, pictures, tmp_path):
    out = tmp_path / "out"
    stain("run", pictures / "a.png", "--mpp", 0.25, "-o", out)
    before = json.loads((out / "a" / "summary.json").read_text())
    code, stdout, _ = stain("rescore", out, "--threshold", 0.0, "--json")
    assert code == 0
    after = json.loads((out / "a" / "summary.json").read_text())
    assert after["scores"]["percent_positive"] == 100.0
    assert before["scores"]["percent_positive"] < 100.0
    assert json.loads(stdout)[0]["scores"]["counts"]["total"] == before["scores"]["counts"]["total"]
    assert stain("rescore", out / "a", "--threshold", before["provenance"]["segmentation"]["threshold"])[0] == 0
    again = json.loads((out / "a" / "summary.json").read_text())
    assert again["scores"]["counts"] == before["scores"]["counts"]


def test_rescore_by_another_column_names_the_known_ones(stain, pictures, tmp_path):
    stain("run", pictures / "a.png", "--mpp", 0.25, "-o", tmp_path / "out")
    assert stain("rescore", tmp_path / "out", "--by", "dab_od_mean", "--threshold", 0.2)[0] == 0
    code, _, stderr = stain("rescore", tmp_path / "out", "--by", "dab", "--threshold", 0.2)
    assert code == 2
    assert "dab_od_mean" in stderr


def test_rescore_of_something_else_is_an_error(stain, tmp_path):
    code, _, stderr = stain("rescore", tmp_path, "--threshold", 0.5)
    assert code == 2
    assert "holds no result" in stderr


@pytest.mark.heavy
def test_the_demo_scores_a_real_picture(stain, tmp_path):
    code, stdout, _ = stain("demo", "-o", tmp_path / "demo")
    assert code == 0
    assert "percent positive" in stdout
    assert "labels.ome.tif" in stdout
    assert {path.name for path in (tmp_path / "demo" / "skimage_ihc").iterdir()} == RESULT
    assert stain("demo", "-o", tmp_path / "demo")[0] == 0


def test_plugins_are_listed_with_their_kind(stain):
    code, stdout, _ = stain("plugins", "--json")
    assert code == 0
    found = json.loads(stdout)
    kinds = {(one["kind"], one["name"]) for one in found["plugins"]}
    assert {
        ("translator", "deconvolution"),
        ("segmenter", "baseline"),
        ("classifier", "dab"),
        ("metric", "dice"),
    } <= kinds
    assert stain("plugins")[0] == 0


def test_the_doctor_is_content_with_the_built_ins(stain):
    assert stain("plugins", "doctor")[:2] == (0, "Every installed plugin loaded.\n")


def test_a_built_in_passes_its_check(stain):
    code, stdout, _ = stain("plugins", "check", "identity", "--json")
    assert code == 0
    assert all(report["outcome"] in ("passed", "expected failure") for report in json.loads(stdout))


def test_checking_an_unknown_plugin_names_the_nearest(stain):
    code, _, stderr = stain("plugins", "check", "identty")
    assert code == 2
    assert "identity" in stderr


def test_models_that_could_not_be_tried_say_so(stain):
    told = " ".join(stain("models", "list")[1].split())
    assert "deepliif/1.1.2, deepliif/current, hovernet/consep" in told
    assert "hovernet/pannuke: the published networks could not be loaded" in told


def test_models_are_listed_with_licence(stain):
    code, stdout, _ = stain("models", "list", "--json")
    assert code == 0
    assert json.loads(stdout)["baseline/he"]["licence"] == "Apache-2.0"


def test_an_unknown_model_names_the_nearest(stain):
    code, _, stderr = stain("models", "where", "baseline/hee")
    assert code == 2
    assert "baseline/he" in stderr


def test_the_version_is_the_packages(stain):
    assert stain("--version")[:2] == (0, f"{stainbridge.__version__}\n")


def test_overwrite_and_resume_exclude_each_other(stain, pictures, tmp_path):
    code, _, stderr = stain("run", pictures, "-o", tmp_path / "out", "--overwrite", "--resume")
    assert code == 2
    assert "exclude each other" in stderr
