"Smooth random rain, and forecasts of it with one peculiarity each."

import numpy as np
from scipy.ndimage import gaussian_filter

from sslpdl_nb.nowcast.verify import NowcastScores


def rain(seed=0, steps=3, size=32, sigma=2.0, members=None, spread=1.2):
    "Smooth random rain (steps, size, size), or an ensemble of it, mm/h."
    shape = (steps, size, size) if members is None else (members, steps, size, size)
    noise = np.random.default_rng(seed).standard_normal(shape)
    field = gaussian_filter(noise, (*[0] * (len(shape) - 2), sigma, sigma), mode="wrap")
    return np.exp(spread * field / field.std()).astype(np.float32)


def scored(forecasts, truths, seen=None, **options):
    "All sequences of a forecast."
    pairs = enumerate(zip(forecasts, truths))
    return NowcastScores.join(
        NowcastScores.of(f, t, seen, sequence=n, **options) for n, (f, t) in pairs
    )


TRUTHS = [rain(k) for k in range(6)]
BLURRED = [gaussian_filter(t, (0, 1, 1)) for t in TRUTHS]
MOVED = [np.roll(t, 1, 2) for t in TRUTHS]
