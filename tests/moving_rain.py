"Sequences of frames whose rain only moves."

import numpy as np
import xarray as xr

from sslpdl_nb.nowcast.frames import to_counts

SIZE = 32  # pixels along each side


def moving_rain(n=4, seed=0, size=SIZE):
    "Sequences of bells of rain that move to the east by one pixel in two frames."
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    rain = np.zeros((n, 24, size, size), np.float32)
    for k in range(n):
        for row, column in rng.integers(0, size, (4, 2)):
            for t in range(24):
                east = (columns - column - t / 2 + size / 2) % size - size / 2
                rain[k, t] += 8 * np.exp(-(east**2 + (rows - row) ** 2) / 18)
    return sequences_of(to_counts(rain))


def sequences_of(counts):
    coords = dict(part=("sequence", ["train"] * len(counts)), x=("x", 2.0 * np.arange(SIZE)))
    coords = coords if counts.shape[-1] == SIZE else {}
    variables = {"radar": (("sequence", "frame", "y", "x"), counts)}
    return xr.Dataset(variables, coords, dict(source="a test"))
