"The pre-training task, and a pre-training that is stopped and goes on."

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sslpdl_nb import train
from sslpdl_nb.checkpoint import load_checkpoint
from sslpdl_nb.core import VARIABLES, CheckpointError, get_config
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.pretrain import Pretrain, pretrain
from sslpdl_nb.store import load_splits
from sslpdl_nb.train import evaluate, fit, loaders, parameter_groups

SAMPLE = Path(__file__).parents[1] / "data_samples" / "tiny"
CONFIG = get_config("small", image_size=(16, 16), drop_path=0.0)


def smooth_samples(n=6):
    "Random fields without fine structure."
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, len(VARIABLES), 2, 2, generator=g)
    fields = nn.functional.interpolate(coarse, size=CONFIG.image_size, mode="bilinear")
    return [{"x": x, "rain": x[0]} for x in fields]


def new_model():
    torch.manual_seed(0)
    return MaskedModel(CONFIG, len(VARIABLES))


def test_pretraining_learns():
    data, model, task = smooth_samples(), new_model(), Pretrain(CONFIG)
    both = loaders(data, data, 6, 0)
    before = evaluate(model, task, both[1])
    groups = parameter_groups(model, 3e-3, 0.01)
    history = fit(model, task, *both, steps=20, groups=groups, eval_every=20, progress=False)
    assert history[-1]["masked_loss"] < 0.8 * before["masked_loss"]
    assert history[-1]["mean"] == before["mean"]  # a baseline does not learn


def test_scores_use_the_same_masks_every_time():
    data, model = smooth_samples(), new_model()
    loader = loaders(data, data, 6, 0)[1]
    first = evaluate(model, Pretrain(CONFIG), loader)
    assert first == evaluate(model, Pretrain(CONFIG), loader)
    assert set(first) == {"masked_loss", "mean", "visible_mean", "nearest"}
    assert first != evaluate(model, Pretrain(CONFIG, seed=1), loader)
    assert Pretrain(CONFIG).scores(model, []) == {}


def test_scores_are_means_over_samples_of_batches_of_any_size():
    data, task = smooth_samples(5), Pretrain(CONFIG)
    full = dict(x=torch.stack([d["x"] for d in data]))
    mask = task.mask(new_model(), 5, torch.Generator().manual_seed(0))
    zero = (full["x"] ** 2).mean()  # of the mean baseline, if everything were masked
    everything = Pretrain(replace(CONFIG, pretrain_mask_ratio=1.0))
    batches = [dict(x=full["x"][:3]), dict(x=full["x"][3:])]
    model = new_model().eval()
    with torch.no_grad():
        scores = everything.scores(model, batches)
    assert mask.shape == (5, model.embed.n)
    assert scores["mean"] == pytest.approx(float(zero), rel=1e-5)


def test_the_task_never_looks_at_observed_rain():
    task, model, batch = Pretrain(CONFIG), new_model(), dict(x=smooth_samples()[0]["x"][None])
    torch.manual_seed(0)
    total, tokens = task.loss(model, batch)  # there is no rain in this batch
    assert total.isfinite() and tokens == round(0.75 * model.embed.n)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_a_stopped_pretraining_goes_on(tmp_path, monkeypatch):
    config = get_config("small", fast=True, pretrain_steps=6, pretrain_batch=4)
    splits = load_splits(SAMPLE, config)
    whole, history = pretrain(config, splits, 0, tmp_path / "whole.safetensors", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.csv", "whole.safetensors"]
    path, real_step, calls = tmp_path / "stopped.safetensors", train.train_step, []

    def power_cut(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real_step(*args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(train, "train_step", power_cut)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, splits, 0, path, progress=False)
    assert not path.exists()
    assert path.with_suffix(".state").exists()
    with pytest.raises(CheckpointError, match="training it belongs to"):
        pretrain(replace(config, pretrain_mask_ratio=0.5), splits, 0, path, progress=False)
    again, resumed = pretrain(config, splits, 0, path, progress=False)
    assert resumed == history
    assert equal(again, whole)
    assert not path.with_suffix(".state").exists()


def test_the_checkpoint_explains_itself(tmp_path):
    config = get_config("small", fast=True, pretrain_steps=1, pretrain_batch=2)
    splits = load_splits(SAMPLE, config)
    path = tmp_path / "pretrained.safetensors"
    model, history = pretrain(config, splits, 4, path, progress=False)
    weights, meta = load_checkpoint(path)
    assert (meta["kind"], meta["seed"], meta["history"]) == ("pretrained", 4, history)
    assert all(torch.equal(weights[k], v.cpu()) for k, v in model.state_dict().items())
