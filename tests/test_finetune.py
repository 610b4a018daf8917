"Transfer, decisions, checkpoints of rain models."

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from sslpdl_nb.core import VARIABLES  # noqa: F401
from sslpdl_nb.core import VARIABLE_NAMES, CheckpointError, DataError, get_config
from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.store import Standardizer
from sslpdl_nb.finetune import (
    THRESHOLDS,
    Finetune,
    rain_model,
    UNet,
    calibrate,
    decide,
    exceedance,
    finetune,
    load_model,
    predict_probabilities,
    save_model,
    threshold_csi,
    transfer,
    tune_thresholds,
)
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.train import load_checkpoint, pretrain, save_checkpoint

CONFIG = get_config(
    "small", image_size=(16, 16), pretrain_steps=2, finetune_steps=4, finetune_batch=4
)


class Rain(torch.utils.data.Dataset):
    "Rain where the first field is high; one corner not observed."

    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.x = torch.nn.functional.interpolate(
            torch.randn(n, 16, 4, 4, generator=g), size=(16, 16), mode="bilinear"
        )
        self.rain = torch.where(self.x[:, 0] > 0.5, 12.0, torch.where(self.x[:, 0] > 0, 1.0, 0.0))
        self.rain[:, :3, :3] = torch.nan

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "rain": self.rain[i], "lead_time": 25.0, "index": i}


@pytest.fixture(scope="module")
def splits():
    train = xr.Dataset(coords=dict(lead_time=("sample", [25.0, 27.0]))).assign_attrs(
        source="simulated for a test"
    )
    return SimpleNamespace(
        train=Rain(8, 0),
        valid=Rain(4, 1),
        test=Rain(4, 2),
        samples=dict(train=train),
        standardizer=Standardizer((0.0,) * 16, (1.0,) * 16, "log1p"),
        grid=LambertGrid(16, 16, 1e4, 0.0, 0.0),
    )


@pytest.fixture(scope="module")
def trained(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    pretrain(CONFIG, splits, 0, folder / "pretrained.safetensors", progress=False)
    return folder, finetune(
        CONFIG,
        splits,
        0,
        folder / "finetuned.safetensors",
        init=folder / "pretrained.safetensors",
        progress=False,
    )


def test_nothing_masked_means_deterministic():
    model, x = rain_model(CONFIG).eval(), torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x), model(x)) and torch.equal(
            model(x), model(x, torch.zeros(2, model.embed.n))
        )
        assert not torch.equal(model(x), model(x, torch.ones(2, model.embed.n)))


def test_transfer_accounts_for_every_name():
    source, model = MaskedModel(CONFIG, len(VARIABLES)), rain_model(CONFIG)
    head = model.decoder.state_dict()
    report = transfer(model, source.state_dict())
    assert sorted(report["moved"] + report["fresh"]) == sorted(model.state_dict())
    assert sorted(report["moved"] + report["left"]) == sorted(source.state_dict())
    assert all(torch.equal(model.state_dict()[n], source.state_dict()[n]) for n in report["moved"])
    assert all(torch.equal(v, head[n]) for n, v in model.decoder.state_dict().items())


def test_nothing_to_transfer_and_unknown_kinds_are_refused(splits, tmp_path):
    config = get_config("small")
    with pytest.raises(CheckpointError, match="embed and encoder.*UNet"):
        transfer(UNet(config), MaskedModel(config, len(VARIABLES)).state_dict())
    with pytest.raises(DataError, match="internimage.*unet.*U-Net"):
        finetune(config, splits, 0, tmp_path / "m.safetensors", kind="U-Net")


def test_transfer_refuses_missing_and_misshapen_weights_and_changes_nothing():
    weights, model = MaskedModel(CONFIG, len(VARIABLES)).state_dict(), rain_model(CONFIG)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    name = next(n for n in weights if n.startswith("encoder."))
    with pytest.raises(CheckpointError, match="missing"):
        transfer(model, {k: v for k, v in weights.items() if k != name})
    with pytest.raises(CheckpointError, match="shape"):
        transfer(model, weights | {name: torch.zeros(1, 2, 3)})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_frozen_encoder_stays(splits, trained, tmp_path):
    init = trained[0] / "pretrained.safetensors"
    config = get_config(
        "small", **{**{k: v for k, v in asdict(CONFIG).items()}, "freeze_encoder": True}
    )
    model, _ = finetune(config, splits, 0, tmp_path / "m.safetensors", init=init, progress=False)
    weights = load_checkpoint(init)[0]
    for name, value in model.state_dict().items():
        if name.startswith(("embed.", "encoder.")):
            assert torch.equal(value.cpu(), weights[name]), name


def test_fine_tuning_repeats_with_the_seed(splits, trained, tmp_path):
    model, _ = finetune(
        CONFIG,
        splits,
        0,
        tmp_path / "m.safetensors",
        init=trained[0] / "pretrained.safetensors",
        progress=False,
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), trained[1][0].state_dict().values())
    )


def test_meta_is_complete_and_typed(splits, trained):
    folder, (model, meta) = trained
    assert (
        meta["config"] == CONFIG
        and meta["grid"] == splits.grid
        and meta["standardizer"] == splits.standardizer
    )
    assert (
        meta["variable_names"] == list(VARIABLE_NAMES)
        and meta["kind"] == "internimage"
        and meta["pretrained"] is True
    )
    assert (
        len(meta["thresholds"]) == 2
        and meta["source"] == "simulated for a test"
        and meta["lead_times"] == [25.0, 27.0]
    )
    assert {"torch", "sslpdl_nb"} <= set(meta["versions"]) and meta["seed"] == 0


def test_probabilities(splits, trained):
    model = trained[1][0]
    model.train()
    p = predict_probabilities(model, splits.test, batch=3)
    assert p.shape == (4, 3, 16, 16) and np.allclose(p.sum(1), 1, atol=1e-5) and model.training
    assert np.allclose(p, predict_probabilities(model, splits.test, batch=4), atol=1e-5)
    with pytest.raises(DataError, match="samples"):
        predict_probabilities(model, torch.utils.data.Subset(splits.test, []))


def test_bad_checkpoints(splits, trained, tmp_path):
    folder, (model, meta) = trained
    with pytest.raises(CheckpointError, match="kind"):
        load_model(folder / "pretrained.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(tmp_path / "none.safetensors")
    path = tmp_path / "m.safetensors"
    save_model(path, model, CONFIG, splits, 0)
    with pytest.raises(CheckpointError, match="m.safetensors"):
        load_model(path)  # thresholds are missing
    save_model(path, model, get_config("small"), splits, 0, thresholds=(0.5, 0.5))
    with pytest.raises(CheckpointError, match="m.safetensors"):
        load_model(path)  # weights of another size
    save_model(
        path,
        model,
        CONFIG,
        splits,
        0,
        thresholds=(0.5, 0.5),
        variable_names=list(reversed(VARIABLE_NAMES)),
    )
    with pytest.raises(CheckpointError, match="variables"):
        load_model(path)


def test_unet_learns_a_simple_rule(splits, tmp_path):
    config = get_config(
        "small", **{**asdict(CONFIG), "finetune_steps": 40, "finetune_batch": 8, "decoder_lr": 3e-3}
    )
    model, meta = finetune(
        config, splits, 0, tmp_path / "u.safetensors", kind="unet", progress=False
    )
    assert (
        isinstance(model, UNet)
        and meta["history"][-1]["loss"] < 0.5 * meta["history"][0]["loss"]
        and meta["pretrained"] is False
    )


def test_decide_and_exceedance():
    p = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]]).T[
        None, :, None
    ]  # 1 3 1 4
    assert np.allclose(exceedance(p)[0, :, 0], [[0.3, 0.6, 0.8, 1], [0.1, 0.1, 0.6, 1]])
    assert decide(p, (0.5, 0.5)).tolist() == [[[0, 1, 2, 2]]] and decide(
        p, (0.2, 0.9)
    ).tolist() == [[[1, 1, 1, 2]]]
    with pytest.raises(DataError, match="thresholds"):
        decide(p, (0.5,))


def test_thresholds_are_the_best_by_brute_force():
    rng = np.random.default_rng(0)
    p, rain = rng.random((2, 5, 6)), np.where(rng.random((2, 5, 6)) < 0.3, 1.0, 0.0)
    rain[0, 0] = np.nan
    csi = threshold_csi(p, rain, 0.1)
    seen, event = ~np.isnan(rain), rain >= 0.1
    for t, value in zip(THRESHOLDS, csi):
        alarm = p >= t
        assert np.isclose(value, (alarm & event & seen).sum() / ((alarm | event) & seen).sum()), t


def dice(n=60, seed=0):
    "Days whose class frequencies are known, the logits of a model that bends them, and a model that only has a last layer."
    g = torch.Generator().manual_seed(seed)
    frequency = (2 * torch.randn(n, 3, 24, 24, generator=g)).softmax(1)
    drawn = torch.multinomial(frequency.movedim(1, -1).reshape(-1, 3), 1, generator=g).reshape(
        n, 24, 24
    )
    rain = torch.tensor([0.0, 1.0, 20.0])[drawn]
    rain[:, :3] = torch.nan
    model = torch.nn.Module()
    model.head = torch.nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(3)[:, :, None, None])
    model.forward = lambda x: model.head(x)
    return model, frequency, rain


@pytest.mark.parametrize(
    "scale, shift", [(1.0, (0, 0, 0)), (2.0, (0, 1.6, 2.3)), (0.5, (-1, 0.5, 0))]
)
def test_calibration_finds_the_true_frequencies(scale, shift):
    model, frequency, rain = dice()
    bent = [
        dict(x=scale * f.log() + torch.tensor(shift)[:, None, None], rain=r)
        for f, r in zip(frequency, rain)
    ]
    found = calibrate(model, bent, (0.1, 10.0))
    assert (
        found["scale"] == pytest.approx(1 / scale, rel=0.05) and found["after"] <= found["before"]
    )
    assert np.abs(predict_probabilities(model, bent) - frequency.numpy()).max() < 0.05
    again = calibrate(model, bent, (0.1, 10.0))  # nothing is left to do
    assert again["scale"] == pytest.approx(1, abs=0.01) and again["before"] - again["after"] < 1e-4


def test_calibration_without_an_event_stays_finite():
    model, frequency, rain = dice(8)
    days = [dict(x=f.log(), rain=r.clamp(max=1.0)) for f, r in zip(frequency, rain)]
    assert np.isfinite(calibrate(model, days, (0.1, 10.0))["shift"]).all()
    assert np.isfinite(p := predict_probabilities(model, days)).all() and p[:, 2].mean() < 0.05


def test_thresholds_need_no_observation_when_probabilities_are_honest():
    rng = np.random.default_rng(0)
    p = rng.dirichlet((8, 1, 0.3), size=(40, 24, 24)).transpose(0, 3, 1, 2)
    drawn = (rng.random((40, 1, 24, 24)) > np.cumsum(p, 1)).sum(
        1
    )  # a class from each pixel's probabilities
    rain = np.array([0.0, 1.0, 20.0])[drawn.clip(max=2)]
    for k, (edge, t) in enumerate(zip((0.1, 10.0), tune_thresholds(p))):
        q, event = exceedance(p)[:, k], rain >= edge

        def score(t):
            return ((q >= t) & event).sum() / ((q >= t) | event).sum()

        assert score(t) > 0.95 * threshold_csi(q, rain, edge).max()


def test_thresholds_by_brute_force():
    p = np.random.default_rng(1).dirichlet((5, 3, 1), size=(1, 4, 5)).transpose(0, 3, 1, 2)
    for q, t in zip(np.moveaxis(exceedance(p), 1, 0), tune_thresholds(p)):
        expected = {u: q[q >= u].sum() / ((q >= u).sum() + q[q < u].sum()) for u in q.ravel()}
        assert np.isclose(expected[t], max(expected.values()))


def test_scores_do_not_need_rain_everywhere(splits):
    task, model = Finetune(CONFIG), UNet(CONFIG).eval()
    with torch.no_grad():
        scores = task.scores(model, torch.utils.data.DataLoader(splits.valid, 2))
    assert set(scores) == {"valid_loss", "csi"} and 0 <= scores["csi"] <= 1


def test_thresholds_of_a_certain_forecast():
    sure = np.stack([np.eye(4), 0 * np.eye(4), 1 - np.eye(4)])[None]
    dry = np.stack([np.ones((2, 2)), *np.zeros((2, 2, 2))])[None]
    assert (
        tune_thresholds(sure) == tune_thresholds(dry) == (1.0, 1.0)
        and (decide(dry, tune_thresholds(dry)) == 0).all()
    )
