"A small archive and studies of it, for the tests of experiments."

import textwrap

import numpy as np
import xarray as xr
import yaml

from sslpdl_nb.baselines.protocol import toy

# Baselines that a user may have written: one that counts its fits, and some that misbehave
MODULE = """
import os, signal, time
from pathlib import Path
from sslpdl_nb.baselines.protocol import Climatology
from sslpdl_nb.core import DataError, mismatch, write_json
from sslpdl_nb.experiments.cells import key_of

HERE = Path(__file__).parent

class Counted(Climatology):
    "A climatology."
    def __init__(self, edges=(0.1, 10.0), power=1):
        super().__init__(edges)
        self.power = power
    def fit(self, train, valid, seed=0):
        with open(HERE / "fits", "a") as file:
            file.write(f"{len(train)} {seed} {train.samples['reference_time'].values[0]}\\n")
        return super().fit(train, valid, seed)

class Broken(Climatology):
    def fit(self, train, valid, seed=0):
        if not (HERE / "mended").exists():
            raise ValueError("a broken baseline")
        return super().fit(train, valid, seed)

class Meeting(Climatology):
    "Ends only if another process is here at the same time."
    def fit(self, train, valid, seed=0):
        (HERE / f"here{seed}").touch()
        for _ in range(2000):
            if len(list(HERE.glob("here*"))) == 2:
                return super().fit(train, valid, seed)
            time.sleep(0.1)
        raise TimeoutError("nobody came")

class Killed(Climatology):
    def fit(self, train, valid, seed=0):
        os.kill(os.getpid(), signal.SIGKILL)

class Interrupted(Climatology):
    def fit(self, train, valid, seed=0):
        raise KeyboardInterrupt

def pretrain(config, splits, seed, path, progress=True):
    with open(HERE / "pretrainings", "a") as file:
        file.write(f"{len(splits.train)} {config.pretrain_steps} {seed}\\n")
    path.touch()
    return None, [dict(step=1, masked_loss=1.0)]

class FromCheckpoint(Climatology):
    def __init__(self, edges=(0.1, 10.0), init=None):
        super().__init__(edges)
        self.init = init
    def fit(self, train, valid, seed=0):
        assert Path(self.init).exists()
        return super().fit(train, valid, seed)

class Lengths:
    "A trial of another kind: how long is the name of the method?"
    facts, costs = ("method", "seed"), dict(seconds="seconds")
    def options(self, method):
        return ("method", "archive", "seed", "times")
    def check(self, cell):
        if cell.get("times", 1) < 1:
            raise DataError(mismatch("times", "at least 1", cell["times"]))
    def command(self, about):
        return "echo " + about["folder"]
    def code(self, cell):
        return dict(hash="c0de", modules={})
    def identity(self, cell, archives):
        name = key_of(cell) + "-c0de"
        return dict(cell=cell, archive={}, code=self.code(cell), name=name)
    def run(self, cell, archives, folder, wait=True):
        about = self.identity(cell, archives)
        length = len(cell["method"]) * cell.get("times", 1)
        record = about | dict(length=length, seconds=0.5, commit="none", finished=time.time())
        write_json(Path(folder, about["name"] + ".json"), record)
        return record
    def rows(self, record):
        return [dict(length=record["length"])]
    def compact(self, record):
        return {k: record[k] for k in ("cell", "name", "length", "seconds", "commit")}
    def pack(self, records):
        return dict(runs=records)
    def unpack(self, content):
        return content["runs"]
    def result(self, record):
        return record["length"]
    def summary(self, frame):
        return f"longest {frame['length'].max()}"

LENGTHS = Lengths()
"""


def write_store(path, seed=0, size=(32, 32), atmospheres=30):
    "A store of a toy: 18 atmospheres for training, 6 each for validation and test."
    t = toy("displaced", seed=seed, atmospheres=atmospheres, size=size)
    parts = [data.samples for data in (t.train, t.valid, t.test)]
    samples = xr.concat(parts, "sample", data_vars="minimal", coords="minimal", compat="override")
    samples.attrs.update(parts[0].attrs | dict(size="toy", seed=seed))
    assert samples.sizes["sample"] == 4 * atmospheres and np.isfinite(samples["rain"]).all()
    path.parent.mkdir(parents=True, exist_ok=True)
    samples.to_netcdf(path)
    return path


def write_study(root, name="trial", module=None, **parts):
    "A study below a folder; its path."
    content = dict(title="A trial", question="Does it run?", expected="It runs.")
    content["archive"] = dict(toy="data/toy.nc")
    content["base"] = dict(image_size=[32, 32])
    path = root / "experiments" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump(content | parts, sort_keys=False))
    if module:
        (root / f"{module}.py").write_text(textwrap.dedent(MODULE))
    return path
