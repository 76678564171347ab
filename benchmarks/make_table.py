"""Make benchmarks/README.md from the results: every figure with its command and machine. Run: python benchmarks/make_table.py"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
INTRODUCTION = """# Benchmarks

Each section is one file of `results/`, written by the command above it. Ratios are of medians within one process, the calls
taking turns; other work ran on the machine, so ratios count and absolute times do not. Made by
`python benchmarks/make_table.py`; do not edit.

Quality is optimistic. `baseline` was developed on the very pictures it is scored on here, `deconvolution` and the 8.5 um of
`cellpose/cyto` were settled on the four IHC tiles, and InstanSeg was trained on IHC of other sources too (`stainbridge models`).
The four tiles hold 342 nuclei: differences of 0.02 mean nothing.
"""

REMARKS = {
    "hovernet_beside": """A batch at a time, as a segmenter without `stream` is called, the network stood idle for a quarter of the time at
50 ms a tile; now for a twentieth, a part of which is the last tiles. Threads are as good as processes here, where the caller does little
else.""",
    "ihc_tiles_trained": """![IHC, deconvolution, CycleGAN, U-GAT-IT](../docs/translations.jpg)

scikit-image's IHC (a stain of the cytoplasm), `deconvolution/cytoplasmic`, and the CycleGAN and U-GAT-IT of this section, made by
`python docs/make_translations.py`. Both learned from a marker of nuclei, so brown cytoplasm becomes nuclear purple and the blue nuclei
in it turn pale: a generator serves the kind of marker that it has seen.

Neither helps. Against `identity` F1 falls with three of seven segmenters for `cyclegan` (`baseline`, both of Cellpose) and with four for
`ugatit` (InstanSeg too), and rises with one (`ugatit`, `stardist/bruce-psyn`, by 0.02). Against `deconvolution/nuclear` it rises with
none, and falls with two (`cyclegan`: both of Cellpose) and four (`ugatit`: InstanSeg, both of Cellpose, `stardist/bruce-th`); the others
cannot be told apart on four pictures. `cyclegan/own` has seen the unlabelled pixels of these pictures, and is flagged.""",
    "generator": """Inference on a GPU was never measured, as no card was at hand for it: the goals of 3 times eager fp32 and of 35 % of the
card's bf16 rate are open. `python benchmarks/speed/generator.py --device cuda` measures both and writes
`results/generator_cuda.json`.""",
    "training_step_gpu": """The goal of a step twice as fast as the original's was missed: at best 1.51 times as fast at batch 4 (bf16,
NCHW) and 1.67 times at batch 1 (fp32), on one H200. The compiled step was not measured; `--compile` adds it.

The losses of 200 steps were to stay within 2 % of the original's. In bf16 the generators' do (0.6 %) and the discriminators' do
not (2.4 %); in fp32 neither do (2.7 and 3.0 %). The original itself, with its first weights nudged by a rounding, is 1.6 %
(generators) and 1.4 % (discriminators) from the original. Single losses are further apart: see the rows.""",
}
"""What a table does not say, by the stem of its result file."""


def rows(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, figure) for every leaf of nested figures."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from rows(inner, f"{path}: {key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from rows(inner, f"{path} {number + 1}")
    else:
        yield path, f"{value:.3g}" if isinstance(value, float) else str(value)


def section(path: Path) -> str:
    """Return the Markdown of one result file."""
    record = json.loads(path.read_text("utf-8"))
    machine = record.get("machine", {})
    head = f"## {path.stem.replace('_', ' ')}\n\n`{record['command']}`\n"
    libraries = ", ".join(f"{name} {version}" for name, version in machine.get("libraries", {}).items())
    about = f"{machine.get('processor', '?')}, {machine.get('cores', '?')} cores, Python {machine.get('python', '?')}; {libraries}"
    figures, remark = record["figures"], [REMARKS[path.stem], ""] if path.stem in REMARKS else []
    if all(isinstance(value, dict) and "pooled" in value for value in figures.values()):
        return "\n".join([head, about, "", *remark, *quality(figures), ""])
    lines = [f"| {name} | {figure} |" for name, figure in rows(figures)]
    return "\n".join([head, about, "", *remark, "| figure | value |", "|---|---|", *lines, ""])


def quality(figures: dict[str, Any]) -> list[str]:
    """Return one row per data set and combination: pooled counts at IoU 0.5 and mean Dice."""
    lines = ["| data: combination | F1 | precision | recall | mean Dice |", "|---|---|---|---|---|"]
    for name, value in figures.items():
        pooled = value["pooled"]
        cells = [pooled["f1"], pooled["precision"], pooled["recall"], value["mean_dice"]]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return lines


def main() -> None:
    """Write benchmarks/README.md."""
    sections = [section(path) for path in sorted((HERE / "results").glob("*.json"))]
    (HERE / "README.md").write_text("\n".join([INTRODUCTION, *sections]), "utf-8")


if __name__ == "__main__":
    main()
