"""Write 2048 x 2048 px with 5,000 nuclei as GeoJSON, and the same polygons by the geojson library.

The library is given polygons that are traced already, so our writer is timed with and without
tracing. Run: python benchmarks/speed/outlines.py
Needs: geojson.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from pathlib import Path
from unittest import mock

import geojson
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write

from stainbridge.io import geojson as writer
from stainbridge.io.geojson import write_geojson
from stainbridge.io.tables import write_parquet
from stainbridge.measure import boxes, regions
from stainbridge.records import Labels, Nuclei
from stainbridge.testing.synthetic import synthetic_labels

SIDE, NUCLEI = 2048, 5_000


def theirs(features: list[dict], path: Path) -> None:
    """Build the library's objects from plain coordinates and dump them."""
    collection = geojson.FeatureCollection(
        [
            geojson.Feature(
                id=str(uuid.uuid4()),
                geometry=geojson.Polygon(feature["geometry"]["coordinates"]),
                properties=feature["properties"],
            )
            for feature in features
        ]
    )
    with open(path, "w") as file:
        geojson.dump(collection, file)


def untraced(path: Path, labels: Labels, nuclei: Nuclei, traced: list) -> None:
    """Write polygons that are traced already."""
    with mock.patch.object(writer, "_outlines", return_value=traced):
        write_geojson(path, labels, nuclei)


def main() -> None:
    """Print the ratio and write it to results."""
    labels = synthetic_labels((SIDE, SIDE), NUCLEI, rng=0, mpp=0.5).array
    table, zeros = regions(labels), np.zeros(NUCLEI)
    nuclei = Nuclei(
        label=np.arange(1, NUCLEI + 1, dtype=np.int32),
        y=table.y,
        x=table.x,
        area_um2=table.area_px * 0.25,
        box=boxes(labels),
        p_positive=zeros,
        positive=zeros > 0,
        grade=zeros.astype(np.int8),
        clipped=zeros > 0,
        features={"dab_od_mean": np.random.default_rng(0).random(NUCLEI)},
    )
    with tempfile.TemporaryDirectory() as folder:
        ours_at, theirs_at, table_at = (Path(folder) / name for name in ("ours.geojson", "theirs.geojson", "a.parquet"))
        write_geojson(ours_at, Labels(labels), nuclei)
        features = [
            feature
            for feature in json.loads(ours_at.read_text())["features"]
            if feature["geometry"]["type"] == "Polygon"
        ]
        traced = list(writer._outlines(Labels(labels), nuclei))
        seconds = medians(
            {
                "ours, traced before": lambda: untraced(ours_at, Labels(labels), nuclei, traced),
                "ours, tracing included": lambda: write_geojson(ours_at, Labels(labels), nuclei),
                "geojson library, traced before": lambda: theirs(features, theirs_at),
                "Parquet table": lambda: write_parquet(table_at, nuclei),
            }
        )
        sizes = {path.name: path.stat().st_size for path in (ours_at, theirs_at, table_at)}
    untraced_s, ours, peer, columns = seconds.values()
    print(NUCLEI / ours, "nuclei per second;", peer / untraced_s, "times the geojson library as a writer")
    write(
        "geojson",
        "python benchmarks/speed/outlines.py",
        {
            "seconds": seconds,
            "bytes": sizes,
            "nuclei_per_s": NUCLEI / ours,
            "peer_over_ours": peer / untraced_s,
            "peer_over_ours_with_tracing": peer / ours,
            "geojson_library_over_parquet": peer / columns,
        },
        "geojson",
    )


if __name__ == "__main__":
    main()
