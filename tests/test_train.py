"The loop, its resume file, checkpoints and the pre-training task."

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from sslpdl_nb.core import VARIABLES  # noqa: F401
from sslpdl_nb.core import CheckpointError, DataError, get_config
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.train import (
    Batches,
    Pretrain,
    evaluate,
    fit,
    load_checkpoint,
    loaders,
    parameter_groups,
    save_checkpoint,
    warmup_cosine,
)


class Line(Dataset):
    def __init__(self, n=12):
        self.x = torch.linspace(-1, 1, n)[:, None]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": 3 * self.x[i] + 1}


class Square:
    stop = None  # the training call in which the power fails
    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return ((model(batch["x"]) - batch["y"]) ** 2).mean()

    def scores(self, model, loader):
        torch.rand(7)  # scores may draw random numbers without changing the training
        return {"error": sum(float(((model(b["x"]) - b["y"]) ** 2).mean()) for b in loader)}


def train(task=None, state=None, seed=0, steps=12, lr=0.05, **how):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1))
    how = dict(every=4, progress=False) | how
    return model, fit(
        model,
        task or Square(),
        *loaders(Line(), Line(), 4, seed),
        steps=steps,
        groups=parameter_groups(model, lr, 0.01),
        seed=seed,
        state=state,
        **how,
    )


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("stop", [1, 5, 6, 10, 12])
def test_resumed_equals_uninterrupted(tmp_path, stop):
    whole, history = train()
    task = Square()
    task.stop = stop
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "state.pt")
    torch.rand(100)  # anything may happen in between
    again, resumed = train(state=tmp_path / "state.pt")
    assert equal(whole, again) and history == resumed
    finished, same = train(state=tmp_path / "state.pt")  # a finished training is not repeated
    assert equal(whole, finished) and same == history


def test_a_resume_file_of_another_training_is_refused(tmp_path):
    train(state=tmp_path / "state.pt")
    for other in (dict(steps=13), dict(seed=1), dict(lr=0.06)):
        with pytest.raises(CheckpointError, match="training it belongs to"):
            train(state=tmp_path / "state.pt", **other)
    (tmp_path / "state.pt").write_bytes(b"not a resume file")
    with pytest.raises(CheckpointError, match="state.pt"):
        train(state=tmp_path / "state.pt")


def test_same_seed_same_result_other_seed_other_result():
    assert equal(train()[0], train()[0]) and not equal(train()[0], train(seed=5)[0])


def test_kept_weights_are_those_of_the_smallest_score(tmp_path):
    class Growing(Square):  # the score only gets worse, so the first weights scored are the best
        seen = 0

        def scores(self, model, loader):
            self.seen += 1
            return {"error": float(self.seen)}

    kept, _ = train(Growing(), keep="error")

    class Stop(Growing):
        def scores(self, model, loader):
            if self.seen == 1:
                raise KeyboardInterrupt
            return super().scores(model, loader)

    with pytest.raises(KeyboardInterrupt):
        train(Stop(), tmp_path / "state.pt", keep="error")
    first = torch.load(tmp_path / "state.pt", weights_only=True)["parts"]["model"]
    assert all(torch.equal(a, b) for a, b in zip(first.values(), kept.state_dict().values()))


def test_a_loss_that_is_not_a_number_stops():
    class Broken(Square):
        def loss(self, model, batch):
            return super().loss(model, batch) * torch.nan

    with pytest.raises(DataError, match="finite"):
        train(Broken())


def test_batches_visit_all_and_start_anywhere():
    batches = Batches(7, 3, seed=2)
    first = [b for b, _ in zip(batches, range(20))]
    for epoch in range(10):
        assert len(set(first[2 * epoch] + first[2 * epoch + 1])) == 6
    for start in (0, 1, 5, 13):
        batches.start = start
        assert [b for b, _ in zip(batches, range(3))] == first[start : start + 3]
    assert next(iter(Batches(2, 16, 0))) in ([0, 1], [1, 0])  # fewer samples than a batch
    with pytest.raises(DataError):
        Batches(0, 4, 0)


def test_schedule():
    values = [warmup_cosine(s, 50, 0.2) for s in range(50)]
    assert (
        values[9] == values[10] == 1
        and values[0] == 0.1
        and values == values[:10] + sorted(values[10:], reverse=True)
    )
    assert 0 < values[-1] < 0.01 and warmup_cosine(0, 1, 0.0) == 1


def test_groups_hold_every_trainable_parameter_once():
    model = MaskedModel(get_config("small", image_size=(16, 16)), len(VARIABLES))
    model.decoder.requires_grad_(False)
    decayed, spared = parameter_groups(model, 1.0, 0.05)
    found = [id(p) for g in (decayed, spared) for p in g["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert spared["weight_decay"] == 0 and all(p.ndim > 1 for p in decayed["params"])
    assert {id(model.embed.mask_token), id(model.embed.position_group)} <= {
        id(p) for p in spared["params"]
    }


def test_checkpoint_round_trip_and_bad_files(tmp_path):
    model, path = nn.Linear(3, 2), tmp_path / "m.safetensors"
    save_checkpoint(path, model, {"a": [1, None, "é"]})
    weights, meta = load_checkpoint(path)
    assert meta == {"a": [1, None, "é"]} and all(
        torch.equal(weights[k], v) for k, v in model.state_dict().items()
    )
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:20], b"", b"PK" + whole):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match="m.safetensors"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.safetensors")
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="this package"):
        load_checkpoint(path)
    with pytest.raises(TypeError):
        save_checkpoint(path, model, {"not json": object()})
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]


def test_pretraining_learns_and_scores_repeat():
    config = get_config("small", image_size=(16, 16), drop_path=0.0)
    g = torch.Generator().manual_seed(0)
    smooth = nn.functional.interpolate(
        torch.randn(6, 16, 2, 2, generator=g), size=(16, 16), mode="bilinear"
    )
    data = [{"x": x, "rain": x[0]} for x in smooth]
    torch.manual_seed(0)
    model, task = MaskedModel(config, len(VARIABLES)), Pretrain(config)
    loader = loaders(data, data, 6, 0)
    before = evaluate(model, task, loader[1])
    assert before == evaluate(model, task, loader[1]) and set(before) == {
        "masked_loss",
        "mean",
        "visible_mean",
        "nearest",
    }
    history = fit(
        model,
        task,
        *loader,
        steps=20,
        groups=parameter_groups(model, 3e-3, 0.01),
        every=20,
        progress=False,
    )
    assert (
        history[-1]["masked_loss"] < 0.8 * before["masked_loss"]
        and history[-1]["mean"] == before["mean"]
    )


def test_a_score_that_is_no_number_ends_the_training():
    class Lost(Square):
        def scores(self, model, loader):
            return {"error": float("nan")}

    with pytest.raises(DataError, match="'error' in step 4: expected a finite number, found nan"):
        train(Lost(), keep="error")
    with pytest.raises(DataError, match="'csi' in step 4: expected a finite number, found None"):
        train(keep="csi")


def test_pretraining_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from dataclasses import replace
    from pathlib import Path
    from sslpdl_nb import train as module
    from sslpdl_nb.store import load_splits

    config = get_config("small", fast=True, pretrain_steps=6, pretrain_batch=4)
    splits = load_splits(Path(__file__).parents[1] / "data_samples" / "tiny", config)
    whole, history = module.pretrain(
        config, splits, 0, tmp_path / "whole.safetensors", progress=False
    )
    assert [p.name for p in tmp_path.iterdir()] == ["whole.safetensors"]
    path, real, calls = tmp_path / "cut.safetensors", module.advance, []

    def cut(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as m:
        m.setattr(module, "advance", cut)
        with pytest.raises(KeyboardInterrupt):
            module.pretrain(config, splits, 0, path, progress=False)
    assert not path.exists() and path.with_suffix(".resume").exists()
    with pytest.raises(CheckpointError, match="training it belongs to"):
        module.pretrain(replace(config, pretrain_mask_ratio=0.5), splits, 0, path, progress=False)
    again, resumed = module.pretrain(config, splits, 0, path, progress=False)
    assert resumed == history and equal(again, whole) and not path.with_suffix(".resume").exists()
