"""Training by two processes: equal to one process, killed and resumed, refused, not finite.

The processes are real and talk through gloo. What they find is written to files, because a test
can look at its own process only.
"""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import Dataset

from sslpdl_nb.core import VARIABLES, CheckpointError, DataError, atomic_path, get_config
from sslpdl_nb.finetune import Finetune, rain_model
from sslpdl_nb.masking import MaskedModel, random_mask
from sslpdl_nb.pretrain import Pretrain
from sslpdl_nb import train
from sslpdl_nb.train import (
    Engine,
    fit,
    from_first,
    loaders,
    parameter_groups,
    ranks,
    train_step,
)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

CONFIG = get_config("small", image_size=(16, 16), drop_path=0.0)
METHOD = "spawn" if sys.platform == "win32" else "forkserver"


class Rain(Dataset):
    "Smooth fields in double precision; rain that is hardly observed in every second sample."

    def __init__(self, n=12):
        g = torch.Generator().manual_seed(0)
        coarse = torch.randn(n, len(VARIABLES), 4, 4, generator=g)
        x = nn.functional.interpolate(coarse, size=CONFIG.image_size, mode="bilinear")
        self.x, self.rain = x.double(), 15 * x[:, 0].clamp(min=0).double()
        self.rain[::2, 2:] = torch.nan

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return dict(x=self.x[i], rain=self.rain[i])


def quick(task):
    "A task without scores that take time."

    class Quick(task):
        def scores(self, model, loader):
            return {}

    return Quick(CONFIG)


def rain_training(pieces=1):
    "Weights after three steps of pre-training and of fine-tuning, in double precision."
    found = {}
    tasks = dict(
        pretrain=(Pretrain, MaskedModel(CONFIG, len(VARIABLES))),
        finetune=(Finetune, rain_model(CONFIG)),
    )
    for name, (task, model) in tasks.items():
        torch.manual_seed(1)
        for p in model.parameters():
            p.data = 0.2 * torch.randn(p.shape)
        model.double()
        history = fit(
            model,
            quick(task),
            *loaders(Rain(), Rain(), 4, 3),
            steps=3,
            groups=parameter_groups(model, 1e-3, 0.05),
            seed=3,
            eval_every=1,
            progress=False,
            engine=Engine(accumulate=pieces),
        )
        found[name] = dict(weights=model.state_dict(), loss=[e["loss"] for e in history])
    return found


def rain_network():
    "A network with random weights, the same in every process, in double precision."
    torch.manual_seed(1)
    model = rain_model(CONFIG)
    for p in model.parameters():
        p.data = 0.2 * torch.randn(p.shape)
    return model.double()


def single_precision():
    "Weights after three steps of gradient descent in single precision."
    rank, world = ranks()
    model, data = rain_network().float(), Rain()
    net, found = train._parallel(model), slice(rank, None, world)
    batch = dict(x=data.x[found].float(), rain=data.rain[found].float())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        shared = torch.Generator().manual_seed(step)
        options = dict(clip_norm=1.0, step=step, generator=shared)
        train_step(net, Finetune(CONFIG), batch, optimizer, **options)
    return model.state_dict()


class Line(Dataset):
    "Points on a line; one of them may be broken."

    def __init__(self, n=12, broken=None):
        self.x = torch.linspace(-1, 1, n)[:, None]
        self.y = 3 * self.x + 1
        if broken is not None:
            self.y[broken] = torch.nan

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return dict(x=self.x[i], y=self.y[i])


class Square:
    "The squared error; a process may kill itself in one of its steps."

    def __init__(self, kill=None):
        self.kill, self.calls, self.inputs = kill, 0, []

    def loss(self, model, batch):
        self.calls += 1
        self.inputs.append(batch["x"].flatten().tolist())
        if self.calls == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return ((model(batch["x"]) - batch["y"]) ** 2).mean()

    def scores(self, model, loader):
        torch.rand(7)
        return {"error": sum(float(((model(b["x"]) - b["y"]) ** 2).mean()) for b in loader)}


def line_training(task=None, state=None, data=None, batch=4, **options):
    "A network with dropout after twelve steps, and its history."
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1))
    options = dict(steps=12, eval_every=4, progress=False, state=state) | options
    both = loaders(data or Line(), Line(), batch, 0)
    groups = parameter_groups(model, 0.05, 0.01)
    return model, fit(model, task or Square(), *both, groups=groups, **options)


def message(function, *args, **options):
    "What the error says that a call ends with."
    with pytest.raises(DataError) as error:
        function(*args, **options)
    return str(error.value)


def meet(rank, folder):
    "Begin to work together with the other process."
    torch.set_num_threads(1)
    address = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)


@contextmanager
def slow_path(path):
    "As on a disk that many share."
    with atomic_path(path) as tmp:
        yield tmp
        time.sleep(0.3)


def whole(rank, folder):
    "Everything that does not need a process to be killed."
    meet(rank, folder)
    task, found = Square(), dict(ranks=ranks(), rain=rain_training(), pieces=rain_training(2))
    found["single"] = single_precision()
    found["first"] = from_first(os.getpid), os.getpid()
    with mock.patch.object(train, "atomic_path", slow_path):  # who reads it has to wait
        found["line"] = line_training(task, f"{folder}/whole.state", log=f"{folder}/whole.csv")
    found["inputs"] = task.inputs
    found["kept"] = line_training(Square(), f"{folder}/whole.state")
    found["average"] = line_training(engine=Engine(ema=0.9))[1]
    found["broken"] = message(line_training, data=Line(broken=5))
    found["odd"] = message(line_training, batch=3)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def killed(rank, folder, ranks_that_die):
    "The training of the line, in which processes are killed in step 10."
    meet(rank, folder)
    line_training(Square(10 if rank in ranks_that_die else None), f"{folder}/line.state")


def resumed(rank, folder):
    "The same training once more."
    meet(rank, folder)
    task = Square()
    torch.save((line_training(task, f"{folder}/line.state"), task.calls), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def one_step(model, part=slice(None), processes=1):
    "A step of gradient descent of a process that has a part of the samples."
    task, data, alone = Finetune(CONFIG), Rain(), rain_network()
    mask = random_mask(len(data), alone.embed.n, 0.25, torch.Generator().manual_seed(0))
    batch = dict(x=data.x, rain=data.rain, mask=mask)
    _, weight = task.loss(alone, batch)
    total, _ = task.loss(model, {k: v[part] for k, v in batch.items()})
    (processes * total / weight).backward()  # the processes' gradients are averaged
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def sharded(rank, folder):
    "One step of two processes that hold half of the parameters each."
    from torch.distributed.fsdp import fully_shard

    meet(rank, folder)
    model = rain_network()
    fully_shard(model.encoder)
    fully_shard(model)
    one_step(model, slice(rank, None, 2), processes=2)
    held = sum(p.to_local().numel() for p in model.parameters())
    weights = {name: w.full_tensor() for name, w in model.state_dict().items()}
    torch.save((held, weights), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def start(function, folder, *args):
    "Two processes, until they end."
    (folder / "meet").unlink(missing_ok=True)
    multiprocessing.set_forkserver_preload([__name__])
    options = dict(nprocs=2, start_method=METHOD, join=False)
    both, end = mp.start_processes(function, (str(folder), *args), **options), time.time() + 300
    while not both.join(timeout=5):
        if time.time() > end:
            for process in both.processes:
                process.kill()
            pytest.fail("the processes wait for each other")


def read(folder):
    "What the two processes have found."
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    start(whole, folder)
    return folder, read(folder)


def difference(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def equal(a, b):
    return difference(a.state_dict(), b.state_dict()) == 0


# ------------------------------------------------------------------ as good as one


@pytest.mark.parametrize("how", ["rain", "pieces"])
def test_two_processes_find_the_weights_of_one(pair, how):
    alone = rain_training()
    for found in pair[1]:
        for name, expected in alone.items():
            assert difference(found[how][name]["weights"], expected["weights"]) < 1e-9
            assert found[how][name]["loss"] == pytest.approx(expected["loss"], abs=1e-9)


def test_in_single_precision_only_rounding_differs(pair):
    "AdamW, which divides by the size of a gradient, would make more of it."
    alone, before = single_precision(), rain_network().state_dict()
    assert difference(alone, before) > 0.01
    for found in pair[1]:
        assert difference(found["single"], alone) < 1e-6


def test_a_mean_of_means_would_be_another_loss():
    "The test above would not be passed by processes that divide by their own weights."
    task, model = Finetune(CONFIG), rain_model(CONFIG).double()
    halves = [dict(x=Rain().x[k::2], rain=Rain().rain[k::2]) for k in (0, 1)]
    (a, v), (b, w) = (task.loss(model, half) for half in halves)
    assert abs((a + b) / (v + w) - (a / v + b / w) / 2) > 1e-4


def test_each_process_takes_its_part_of_every_batch(pair):
    task = Square()
    line_training(task)
    first, second = (found["inputs"] for found in pair[1])
    assert [batch[::2] for batch in task.inputs] == first
    assert [batch[1::2] for batch in task.inputs] == second


def test_all_processes_hold_the_same_and_the_first_one_speaks(pair):
    folder, (first, second) = pair
    assert (first["ranks"], second["ranks"]) == ((0, 2), (1, 2))
    assert first["first"][0] == second["first"][0] == first["first"][1] != second["first"][1]
    assert equal(first["line"][0], second["line"][0])
    assert first["line"][1] == second["line"][1]
    assert first["average"] == second["average"] != first["line"][1]
    steps = [line.split(",")[0] for line in (folder / "whole.csv").read_text().splitlines()]
    assert steps == ["step", "4", "8", "12"]


def test_sharded_parameters_find_the_same_weights(tmp_path):
    "FSDP2, for networks that do not fit: nothing in the layers stands in its way."
    pytest.importorskip("torch.distributed.fsdp", reason="torch without FSDP2")
    start(sharded, tmp_path)
    alone = rain_network()
    one_step(alone)
    for held, weights in read(tmp_path):
        assert held < 0.6 * sum(p.numel() for p in alone.parameters())
        assert difference(weights, alone.state_dict()) < 1e-9


# ------------------------------------------------------------------ killed and resumed


@pytest.mark.parametrize("ranks_that_die", [(1,), (0, 1)])
def test_killed_and_resumed_equals_uninterrupted(pair, tmp_path, ranks_that_die):
    with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
        start(killed, tmp_path, ranks_that_die)
    assert (tmp_path / "line.state").exists()
    start(resumed, tmp_path)
    for found, ((model, history), calls) in zip(pair[1], read(tmp_path)):
        assert calls == 4  # steps 9 to 12
        assert equal(model, found["line"][0])
        assert history == found["line"][1]


def test_a_finished_training_is_not_repeated(pair):
    for found in pair[1]:
        assert equal(found["kept"][0], found["line"][0]) and found["kept"][1] == found["line"][1]


def test_the_state_of_another_number_of_processes_is_refused(pair, tmp_path):
    with pytest.raises(CheckpointError, match="expected {'processes': None}, found .*: 2}"):
        line_training(state=pair[0] / "whole.state")


# ------------------------------------------------------------------ refused


def test_a_broken_sample_stops_both_processes_and_is_among_those_named(pair):
    messages = {found["broken"] for found in pair[1]}
    assert len(messages) == 1
    text = messages.pop()
    assert text.startswith("loss in step ") and "expected a finite number, found nan" in text
    samples = text.split("[")[1].split("]")[0].split(", ")
    assert "5" in samples and len(samples) == 4


def test_a_batch_that_cannot_be_divided_is_refused(pair):
    for found in pair[1]:
        assert "expected a multiple of 2 processes x 1 pieces, found 3" in found["odd"]
