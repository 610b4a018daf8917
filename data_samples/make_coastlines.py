"""Make sslpdl_nb/natural_earth.npz: coastlines and borders for maps that need no network.

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    python data_samples/make_coastlines.py package

The folder holds Natural Earth's countries (public domain) as TopoJSON: each line that two
countries share is stored once, as an *arc*. So an arc used by one country is coast, and an arc
used by two is a border.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "sslpdl_nb" / "natural_earth.npz"
RESOLUTIONS = ("50m", "110m")  # scale 1:50 million and 1:110 million


def decode_arcs(
    topology: dict,  # a TopoJSON topology whose coordinates are integer steps
) -> list:  # one array (points, 2) of longitude, latitude in degrees per arc
    "The arcs in degrees: running sums of the steps, then scale and shift."
    scale, shift = (np.array(topology["transform"][k]) for k in ("scale", "translate"))
    return [np.cumsum(np.array(arc), axis=0) * scale + shift for arc in topology["arcs"]]


def arc_users(
    countries: list,  # TopoJSON geometries (polygons and multi-polygons)
) -> dict:  # arc number -> set of the countries that use it
    "Which countries use each arc; the number ~i means arc i walked backwards."
    users = defaultdict(set)
    for number, country in enumerate(countries):
        polygons = [country["arcs"]] if country["type"] == "Polygon" else country["arcs"]
        for ring in (ring for polygon in polygons for ring in polygon):
            for arc in ring:
                users[arc if arc >= 0 else ~arc].add(number)
    return users


def without_seams(
    line: np.ndarray,  # (points, 2) longitude, latitude in degrees
) -> list:  # the same line without the edges of the map
    "Cut a line where it runs along the date line or the South Pole, which are no coasts."
    edge = (np.abs(line[:, 0]) > 179.99) | (line[:, 1] < -89.9)
    seam = edge[:-1] & edge[1:]  # segments with both ends on the edge
    parts = np.split(np.arange(len(line)), np.flatnonzero(seam) + 1)
    return [line[part] for part in parts if len(part) > 1]


def pack(
    lines: list,  # arrays (points, 2)
) -> tuple:  # points (all, 2) float32, offsets (lines + 1) int32
    "All lines in one array; line i is points[offsets[i]:offsets[i + 1]]."
    points = np.concatenate(lines).astype("float32")
    return points, np.cumsum([0] + [len(line) for line in lines]).astype("int32")


def make(
    folder: Path,  # the unpacked world-atlas package
) -> dict:  # arrays by name
    "Coast and border lines at both resolutions."
    arrays = {}
    for resolution in RESOLUTIONS:
        topology = json.loads((folder / f"countries-{resolution}.json").read_text())
        arcs = decode_arcs(topology)
        users = arc_users(topology["objects"]["countries"]["geometries"])
        for kind, n_users in (("coast", 1), ("border", 2)):
            lines = []
            for i in sorted(users):
                if min(len(users[i]), 2) == n_users:
                    lines += without_seams(arcs[i])
            name = f"{kind}_{resolution}"
            arrays[name], arrays[f"{name}_offsets"] = pack(lines)
    return arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="unpacked npm package world-atlas 2.0.2")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    arrays = make(args.folder)
    temporary = args.out.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # numpy dates every member 1980: always the same bytes
    os.replace(temporary, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")
    for name, points in arrays.items():
        if not name.endswith("offsets"):
            lines = len(arrays[f"{name}_offsets"]) - 1
            print(f"  {name:12} {lines:5} lines {len(points):6} points")


if __name__ == "__main__":
    main()
