"Fine-tuning: moving weights, the task, checkpoints of rain models, and the U-Net."

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import xarray as xr

from sslpdl_nb import train
from sslpdl_nb.checkpoint import describe, load_checkpoint, save_checkpoint
from sslpdl_nb.core import VARIABLE_NAMES, CheckpointError, DataError, get_config
from sslpdl_nb.finetune import (
    Finetune,
    UNet,
    finetune,
    load_model,
    rain_model,
    save_model,
    transfer,
)
from sslpdl_nb.grids.types import LambertGrid
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.pretrain import pretrain
from sslpdl_nb.store import Standardizer

N_VARIABLES = len(VARIABLE_NAMES)
SIZE = (16, 16)
CONFIG = get_config("small", image_size=SIZE, pretrain_steps=2, finetune_steps=4, finetune_batch=4)


class Rain(torch.utils.data.Dataset):
    "Rain where the first field is high; one corner not observed."

    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        coarse = torch.randn(n, N_VARIABLES, 4, 4, generator=g)
        self.x = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
        first = self.x[:, 0]
        self.rain = torch.zeros_like(first)
        self.rain[first > 0] = 1.0
        self.rain[first > 0.5] = 12.0
        self.rain[:, :3, :3] = torch.nan

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "rain": self.rain[i], "lead_time": 25.0, "index": i}


@pytest.fixture(scope="module")
def splits():
    lead_time = dict(lead_time=("sample", [25.0, 27.0]))
    return SimpleNamespace(
        train=Rain(8, 0),
        valid=Rain(4, 1),
        test=Rain(4, 2),
        pretrain=None,
        samples=dict(train=xr.Dataset(coords=lead_time, attrs=dict(source="simulated for a test"))),
        standardizer=Standardizer((0.0,) * N_VARIABLES, (1.0,) * N_VARIABLES, "log1p"),
        grid=LambertGrid(nx=16, ny=16, dx=1e4, x0=0.0, y0=0.0),
    )


@pytest.fixture(scope="module")
def pretrained(splits, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "pretrained.safetensors"
    pretrain(CONFIG, splits, 0, path, progress=False)
    return path


@pytest.fixture(scope="module")
def trained(splits, pretrained):
    path = pretrained.with_name("finetuned.safetensors")
    return finetune(CONFIG, splits, 0, path, init=pretrained, progress=False)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# ------------------------------------------------------------------ moving the weights


def test_nothing_masked_means_the_same_answer_every_time():
    model, x = rain_model(CONFIG).eval(), torch.randn(2, N_VARIABLES, *SIZE)
    with torch.no_grad():
        answer = model(x)
        assert torch.equal(model(x), answer)
        assert torch.equal(model(x, torch.zeros(2, model.embed.n)), answer)
        assert not torch.equal(model(x, torch.ones(2, model.embed.n)), answer)


def test_transfer_accounts_for_every_name():
    source, model = MaskedModel(CONFIG, N_VARIABLES), rain_model(CONFIG)
    head = {name: v.clone() for name, v in model.decoder.state_dict().items()}
    report = transfer(model, source.state_dict())
    mine, theirs = model.state_dict(), source.state_dict()
    assert sorted(report["moved"] + report["fresh"]) == sorted(mine)
    assert sorted(report["moved"] + report["left"]) == sorted(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in report["moved"])
    assert all(torch.equal(v, head[name]) for name, v in model.decoder.state_dict().items())


def test_a_model_without_encoder_takes_no_weights():
    with pytest.raises(CheckpointError, match="embed and encoder.*UNet"):
        transfer(UNet(CONFIG), MaskedModel(CONFIG, N_VARIABLES).state_dict())


def test_missing_and_misshapen_weights_are_refused_and_change_nothing():
    weights, model = MaskedModel(CONFIG, N_VARIABLES).state_dict(), rain_model(CONFIG)
    before = {name: v.clone() for name, v in model.state_dict().items()}
    first = next(name for name in weights if name.startswith("encoder."))
    with pytest.raises(CheckpointError, match="missing"):
        transfer(model, {name: v for name, v in weights.items() if name != first})
    with pytest.raises(CheckpointError, match="shape"):
        transfer(model, weights | {first: torch.zeros(1, 2, 3)})
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


# ------------------------------------------------------------------ training


def test_unknown_kinds_are_refused(splits, tmp_path):
    with pytest.raises(DataError, match="internimage.*unet.*U-Net"):
        finetune(CONFIG, splits, 0, tmp_path / "m.safetensors", kind="U-Net")
    assert not list(tmp_path.iterdir())


def test_a_frozen_encoder_stays(splits, pretrained, tmp_path):
    config = replace(CONFIG, freeze_encoder=True)
    path = tmp_path / "m.safetensors"
    model, _ = finetune(config, splits, 0, path, init=pretrained, progress=False)
    weights, _ = load_checkpoint(pretrained)
    for name, value in model.state_dict().items():
        if name.startswith(("embed.", "encoder.")):
            assert torch.equal(value.cpu(), weights[name]), name


def test_fine_tuning_repeats_with_the_seed(splits, pretrained, trained, tmp_path):
    path = tmp_path / "m.safetensors"
    model, _ = finetune(CONFIG, splits, 0, path, init=pretrained, progress=False)
    assert equal(model, trained[0])


def test_a_stopped_fine_tuning_goes_on(splits, pretrained, trained, tmp_path, monkeypatch):
    path, real_step, calls = tmp_path / "m.safetensors", train.train_step, []

    def power_cut(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real_step(*args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(train, "train_step", power_cut)
        with pytest.raises(KeyboardInterrupt):
            finetune(CONFIG, splits, 0, path, init=pretrained, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.csv", "m.state"]
    with pytest.raises(CheckpointError, match="training it belongs to"):
        finetune(CONFIG, splits, 0, path, progress=False)  # from scratch: another training
    model, meta = finetune(CONFIG, splits, 0, path, init=pretrained, progress=False)
    assert equal(model, trained[0])
    assert meta["history"] == trained[1]["history"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.csv", "m.safetensors"]


def test_the_unet_learns_a_simple_rule(splits, tmp_path):
    config = replace(CONFIG, finetune_steps=40, finetune_batch=8, decoder_lr=3e-3)
    path = tmp_path / "u.safetensors"
    model, meta = finetune(config, splits, 0, path, kind="unet", progress=False)
    assert isinstance(model, UNet)
    assert meta["history"][-1]["loss"] < 0.5 * meta["history"][0]["loss"]
    assert meta["pretrained"] is False


def test_scores_do_not_need_rain_everywhere(splits):
    task, model = Finetune(CONFIG), UNet(CONFIG).eval()
    with torch.no_grad():
        scores = task.scores(model, torch.utils.data.DataLoader(splits.valid, 2))
    assert set(scores) == {"valid_loss", "csi"}
    assert 0 <= scores["csi"] <= 1


def test_the_csi_of_days_without_rain_is_zero(splits):
    task, model = Finetune(CONFIG), UNet(CONFIG).eval()
    dry = dict(x=splits.valid.x, rain=torch.zeros_like(splits.valid.rain))
    with torch.no_grad():
        assert task.scores(model, [dry])["csi"] == 0


# ------------------------------------------------------------------ what a model says about itself


def test_the_description_is_complete_and_typed(splits, trained):
    _, meta = trained
    assert meta["config"] == CONFIG
    assert meta["grid"] == splits.grid
    assert meta["standardizer"] == splits.standardizer
    assert meta["variable_names"] == list(VARIABLE_NAMES)
    assert meta["kind"] == "internimage"
    assert meta["pretrained"] is True
    assert len(meta["probability_thresholds"]) == 2
    assert meta["source"] == "simulated for a test"
    assert meta["lead_times"] == [25.0, 27.0]
    assert meta["seed"] == 0
    assert {"torch", "sslpdl_nb"} <= set(meta["versions"])


def test_what_is_no_rain_model_is_refused(splits, pretrained, trained, tmp_path):
    model, path = trained[0], tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="kind"):
        load_model(pretrained)
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(tmp_path / "none.safetensors")
    save_model(path, model, CONFIG, splits, seed=0)
    with pytest.raises(CheckpointError, match="m.safetensors.*probability_thresholds"):
        load_model(path)
    halves = dict(probability_thresholds=(0.5, 0.5))
    save_model(path, model, get_config("small"), splits, seed=0, **halves)
    with pytest.raises(CheckpointError, match="m.safetensors"):
        load_model(path)  # weights of another size
    other_order = dict(variable_names=list(reversed(VARIABLE_NAMES)))
    save_model(path, model, CONFIG, splits, seed=0, **halves, **other_order)
    with pytest.raises(CheckpointError, match="variables"):
        load_model(path)


def test_a_configuration_of_another_version_is_refused(splits, trained, tmp_path):
    path = tmp_path / "m.safetensors"
    meta = describe(CONFIG, splits, 0, "internimage") | dict(probability_thresholds=(0.5, 0.5))
    meta["config"]["new_field"] = 1
    save_checkpoint(path, trained[0], meta)
    with pytest.raises(CheckpointError, match="this version of the package"):
        load_model(path)
