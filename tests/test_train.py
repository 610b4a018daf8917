"The training loop: resuming, the training state, the order of batches, schedule and groups."

import csv
import sys
from types import ModuleType

import pytest
from locked import another_process_writes
import torch
from torch import nn
from torch.utils.data import Dataset

from sslpdl_nb.core import VARIABLES, CheckpointError, DataError, get_config
from sslpdl_nb.finetune import Finetune, rain_model
from sslpdl_nb.masking import ExactDeform, MaskedModel, change_layers
from sslpdl_nb.pretrain import Pretrain
from sslpdl_nb.train import (
    Batches,
    Engine,
    Log,
    evaluate,
    fit,
    load_state,
    loaders,
    parameter_groups,
    save_state,
    to_device,
    train_step,
    warmup_cosine,
)


class Line(Dataset):
    "Points on the line y = 3 x + 1."

    def __init__(self, n=12):
        self.x = torch.linspace(-1, 1, n)[:, None]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": 3 * self.x[i] + 1}


class Square:
    "The squared error; the power may fail in one of the calls."

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


def train(task=None, state=None, seed=0, steps=12, lr=0.05, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1))
    options = dict(eval_every=4, progress=False) | options
    history = fit(
        model,
        task or Square(),
        *loaders(Line(), Line(), 4, seed),
        steps=steps,
        groups=parameter_groups(model, lr, 0.01),
        seed=seed,
        state=state,
        **options,
    )
    return model, history


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# ------------------------------------------------------------------ stopped and resumed


@pytest.mark.parametrize("stop", [1, 5, 6, 10, 12])
def test_resumed_equals_uninterrupted(tmp_path, stop):
    whole, history = train()
    task = Square()
    task.stop = stop
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "state.pt")
    torch.rand(100)  # anything may happen in between
    again, resumed = train(state=tmp_path / "state.pt")
    assert equal(whole, again)
    assert history == resumed
    finished, same = train(state=tmp_path / "state.pt")  # a finished training is not repeated
    assert equal(whole, finished)
    assert same == history


def test_the_state_of_another_training_is_refused(tmp_path):
    train(state=tmp_path / "state.pt")
    others = [dict(steps=13), dict(seed=1), dict(lr=0.06), dict(about={"source": "another"})]
    engines = (Engine(precision="bfloat16"), Engine(accumulate=2), Engine(ema=0.9))
    for other in [*others, *(dict(engine=engine) for engine in engines)]:
        with pytest.raises(CheckpointError, match="training it belongs to"):
            train(state=tmp_path / "state.pt", **other)
    (tmp_path / "state.pt").write_bytes(b"not a training state")
    with pytest.raises(CheckpointError, match="state.pt: expected a training state"):
        train(state=tmp_path / "state.pt")
    torch.save([1, 2], tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="training it belongs to"):
        train(state=tmp_path / "state.pt")


def test_a_state_that_another_process_writes_is_refused(tmp_path):
    with another_process_writes(tmp_path / "a.state") as number:
        with pytest.raises(DataError, match=f"a.state.lock locked by process {number} on "):
            train(state=tmp_path / "a.state")
        assert not (tmp_path / "a.state").exists()
    train(state=tmp_path / "a.state")
    assert [f.name for f in tmp_path.iterdir()] == ["a.state"]


def test_a_full_disk_keeps_the_state_before_and_names_the_file(tmp_path, monkeypatch):
    "The message of torch says neither; this is what it raises there."
    task = Square()
    task.stop = 6
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "a.state")
    before = (tmp_path / "a.state").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    with monkeypatch.context() as m:
        m.setattr(torch, "save", full)
        with pytest.raises(DataError, match="writing .*a.state: expected room.*GB free"):
            train(state=tmp_path / "a.state")
    assert (tmp_path / "a.state").read_bytes() == before
    assert equal(train(state=tmp_path / "a.state")[0], train()[0])
    assert [f.name for f in tmp_path.iterdir()] == ["a.state"]


def test_a_state_brings_back_parts_step_history_and_random_numbers(tmp_path):
    path, layer, run = tmp_path / "deep" / "a.state", nn.Linear(2, 3), dict(seed=1, source="é")
    torch.manual_seed(5)
    save_state(path, dict(model=layer), run, 7, [dict(step=7, loss=0.5)])
    expected = torch.rand(3)
    other = nn.Linear(2, 3)
    assert load_state(path, dict(model=other), run) == (7, [dict(step=7, loss=0.5)])
    assert equal(layer, other)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(CheckpointError, match="'source': 'x'"):
        load_state(path, dict(model=other), run | dict(source="x"))
    assert [f.name for f in path.parent.iterdir()] == ["a.state"]


def test_a_state_of_something_more_is_refused_by_something_less(tmp_path):
    train(state=tmp_path / "state.pt", about={"task": "another"})
    with pytest.raises(CheckpointError, match="expected {'task': None}, found {'task': 'another'}"):
        train(state=tmp_path / "state.pt")


def test_a_state_that_was_written_by_one_process_in_the_old_form_is_read(tmp_path):
    path, layer = tmp_path / "a.state", nn.Linear(2, 3)
    save_state(path, dict(model=layer), {}, 7, [])
    state = torch.load(path, weights_only=True)
    assert state.pop("others") == []
    torch.save(state, path)
    assert load_state(path, dict(model=nn.Linear(2, 3)), {}) == (7, [])


def test_same_seed_same_result_other_seed_other_result():
    assert equal(train()[0], train()[0])
    assert not equal(train()[0], train(seed=5)[0])


# ------------------------------------------------------------------ the weights that remain


class Growing(Square):
    "The score only gets worse, so the first weights that are evaluated are the best."

    evaluations = 0

    def scores(self, model, loader):
        self.evaluations += 1
        return {"error": float(self.evaluations)}


class StopAtSecondEvaluation(Growing):
    def scores(self, model, loader):
        if self.evaluations == 1:
            raise KeyboardInterrupt
        return super().scores(model, loader)


def test_monitored_weights_are_those_of_the_smallest_score(tmp_path):
    best, _ = train(Growing(), monitor="error")
    with pytest.raises(KeyboardInterrupt):
        train(StopAtSecondEvaluation(), tmp_path / "state.pt", monitor="error")
    first = torch.load(tmp_path / "state.pt", weights_only=True)["parts"]["model"]
    assert all(torch.equal(a, b) for a, b in zip(first.values(), best.state_dict().values()))


def test_without_monitor_the_last_weights_remain():
    last, _ = train(Growing())
    best, _ = train(Growing(), monitor="error")
    assert equal(last, train()[0])
    assert not equal(last, best)


def test_a_finished_model_is_in_evaluation_mode():
    assert not train()[0].training


# ------------------------------------------------------------------ what is not finite


def test_a_loss_that_is_not_a_number_stops_the_training():
    class Broken(Square):
        def loss(self, model, batch):
            return super().loss(model, batch) * torch.nan

    batch = next(iter(Batches(12, 4, 0)))
    words = f"loss in step 0, samples {batch}: expected a finite number, found nan"
    with pytest.raises(DataError) as error:
        train(Broken())
    assert str(error.value) == words


def test_after_a_loss_that_is_not_a_number_the_last_good_state_is_there(tmp_path):
    class Broken(Square):
        def loss(self, model, batch):
            loss = super().loss(model, batch)
            return loss / (self.calls != 7)

    with pytest.raises(DataError, match="loss in step 6, samples .*found inf"):
        train(Broken(), tmp_path / "a.state")
    model, history = train(state=tmp_path / "a.state")
    assert equal(model, train()[0])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_monitored_score_that_is_not_a_number_stops_the_training():
    class Lost(Square):
        def scores(self, model, loader):
            return {"error": float("nan")}

    with pytest.raises(DataError, match="'error' in step 4: expected a finite number, found nan"):
        train(Lost(), monitor="error")
    with pytest.raises(DataError, match="'csi' in step 4: expected a finite number, found None"):
        train(monitor="csi")


# ------------------------------------------------------------------ how it is computed

RAIN = get_config("small", image_size=(16, 16), drop_path=0.0)


class Fields(Dataset):
    "Random fields, and rain that is observed in a part of the map, another one in each sample."

    def __init__(self, n=8, dtype=torch.float64):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, len(VARIABLES), *RAIN.image_size, generator=g).to(dtype)
        self.rain = 5 * self.x[:, 0].clamp(min=0)
        for i in range(n):
            self.rain[i, 2 * i + 1 :] = torch.nan

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return dict(x=self.x[i], rain=self.rain[i])


def fields_training(task, model, dtype=torch.float64, steps=2, **engine):
    "Losses of a short training."
    task.scores = lambda model, loader: {}
    data = Fields(dtype=dtype)
    torch.manual_seed(1)
    for p in model.parameters():
        p.data = 0.2 * torch.randn(p.shape, dtype=dtype)
    options = dict(groups=parameter_groups(model, 1e-3, 0.05), progress=False, eval_every=1)
    both = loaders(data, data, 4, 0)
    history = fit(model, task, *both, steps=steps, engine=Engine(**engine), **options)
    return [entry["loss"] for entry in history]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_pieces_of_a_batch_find_the_weights_of_the_whole(kind):
    found = []
    for pieces in (1, 4):
        if kind == "pretrain":
            task, model = Pretrain(RAIN), MaskedModel(RAIN, len(VARIABLES))
        else:
            task, model = Finetune(RAIN), rain_model(RAIN)
        loss = fields_training(task, model.double(), accumulate=pieces)
        found.append((loss, torch.cat([p.flatten() for p in model.parameters()])))
    (one, whole), (four, pieces) = found
    assert four == pytest.approx(one, abs=1e-12)
    assert (whole - pieces).abs().max() < 1e-9


def test_a_batch_that_pieces_do_not_divide_is_refused():
    with pytest.raises(DataError, match="a multiple of 1 processes x 3 pieces, found 4"):
        train(engine=Engine(accumulate=3))


def test_bfloat16_stays_out_of_weights_loss_and_deformable_convolutions():
    seen, model = set(), rain_model(RAIN)
    assert change_layers(model, ExactDeform) == 10
    for layer in model.modules():
        if isinstance(layer, ExactDeform):
            for inner in (layer.offset, layer.mask, layer.value, layer.out):
                inner.register_forward_hook(lambda m, i, o: seen.add(("deform", o.dtype)))
        elif isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda m, i, o: seen.add(("linear", o.dtype)))
    exact = fields_training(Finetune(RAIN), rain_model(RAIN), torch.float32)
    half = fields_training(Finetune(RAIN), model, torch.float32, precision="bfloat16")
    assert {dtype for kind, dtype in seen if kind == "deform"} == {torch.float32}
    assert ("linear", torch.bfloat16) in seen
    assert half != exact
    assert half == pytest.approx(exact, rel=0.03)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_average_of_the_weights_is_what_is_judged_and_remains(tmp_path):
    seen = []

    class Watched(Square):
        def scores(self, model, loader):
            seen.append([p.detach().clone() for p in model.parameters()])
            return super().scores(model, loader)

    def weights(**options):
        seen.clear()
        model, history = train(Watched(), eval_every=1, **options)
        return model, history, list(seen)

    _, _, plain = weights()
    model, history, averages = weights(engine=Engine(ema=0.75))
    expected = plain[0]
    for new, average in zip(plain, averages):
        expected = [0.75 * e + 0.25 * p for e, p in zip(expected, new)]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, average))
    assert all(torch.equal(a, b) for a, b in zip(averages[-1], model.parameters()))
    task = Square()
    task.stop = 7
    options = dict(eval_every=1, engine=Engine(ema=0.75))
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "a.state", **options)
    again, resumed = train(state=tmp_path / "a.state", **options)
    assert equal(again, model) and resumed == history


def test_workers_change_nothing_even_if_the_training_is_stopped(tmp_path):
    def with_workers(task, state=None):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1))
        options = dict(steps=12, groups=parameter_groups(model, 0.05, 0.01), eval_every=4)
        both = loaders(Line(), Line(), 4, 0, workers=2)
        return model, fit(model, task, *both, state=state, progress=False, **options)

    task = Square()
    task.stop = 10
    with pytest.raises(KeyboardInterrupt):
        with_workers(task, tmp_path / "a.state")
    model, history = with_workers(Square(), tmp_path / "a.state")
    whole, expected = train()
    assert equal(model, whole) and history == expected


@pytest.mark.parametrize(
    "wrong",
    [dict(precision="half"), dict(accumulate=0), dict(accumulate=1.5), dict(workers=-1)]
    + [dict(ema=1.0), dict(ema=-0.1)],
)
def test_an_engine_that_cannot_be_is_refused(wrong):
    with pytest.raises(DataError, match=f"Engine: {next(iter(wrong))}: expected"):
        Engine(**wrong)


# ------------------------------------------------------------------ the log


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_log_has_every_evaluation_once_whatever_happens(tmp_path):
    path, state, task = tmp_path / "a.csv", tmp_path / "a.state", Square()
    task.stop = 10
    with pytest.raises(KeyboardInterrupt):
        train(task, state, log=path)
    before = rows(path)
    assert [row["step"] for row in before] == ["4", "8"]
    _, history = train(state=state, log=path)
    after = rows(path)
    assert after[:2] == before
    names = ["step", "loss", "error", "learning_rate", "seconds"]
    assert [list(row) for row in after] == 3 * [names]
    assert [float(row["loss"]) for row in after] == [entry["loss"] for entry in history]
    seconds = [float(row["seconds"]) for row in after]
    assert seconds == sorted(seconds)
    assert float(after[-1]["learning_rate"]) == pytest.approx(0.05 * warmup_cosine(11, 12, 0.1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.state"]


@pytest.mark.parametrize("damage", ["", "no log", "step,loss\n4,x\nfour", "step\n4\n"])
def test_a_damaged_log_is_made_again_from_the_history(tmp_path, damage):
    path, state, task = tmp_path / "a.csv", tmp_path / "a.state", Square()
    task.stop = 10
    with pytest.raises(KeyboardInterrupt):
        train(task, state)
    path.write_text(damage)
    _, history = train(state=state, log=path)
    assert [int(row["step"]) for row in rows(path)] == [4, 8, 12]
    assert [float(row["error"]) for row in rows(path)] == [entry["error"] for entry in history]
    assert rows(path)[0]["seconds"] == "" != rows(path)[2]["seconds"]


def test_the_log_of_another_training_before_is_not_continued(tmp_path):
    train(log=tmp_path / "a.csv", steps=8)
    _, history = train(log=tmp_path / "a.csv", seed=5, steps=4)
    assert [float(row["loss"]) for row in rows(tmp_path / "a.csv")] == [history[0]["loss"]]


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    class Writer:
        calls, made = [], []

        def __init__(self, folder, purge_step):
            self.made.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            self.calls.append((name, value, step))

        def flush(self):
            pass

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    _, history = train(engine=Engine(tensorboard=str(tmp_path)))
    assert Writer.made == [(str(tmp_path), 1)]
    for entry in history:
        assert ("error", entry["error"], entry["step"]) in Writer.calls


def test_without_tensorboard_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DataError, match="pip install tensorboard"):
        Log(None, tmp_path)


# ------------------------------------------------------------------ one step, one evaluation


def test_one_step_clips_the_gradient():
    model = nn.Linear(1, 1)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batch = {"x": torch.ones(4, 1), "y": torch.full((4, 1), 1e6)}
    loss = train_step(model, Square(), batch, optimizer, clip_norm=0.1, step=0)
    moved = torch.stack([(p - b).norm() for p, b in zip(model.parameters(), before)]).norm()
    assert not loss.requires_grad
    assert float(moved.detach()) == pytest.approx(0.1, rel=1e-4)


def test_an_evaluation_changes_neither_mode_nor_random_numbers():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)).train()
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    loader = loaders(Line(), Line(), 4, 0)[1]
    first = evaluate(model, Square(), loader)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert evaluate(model, Square(), loader) == first  # no dropout while it evaluates


def test_only_tensors_go_to_the_device():
    batch = to_device({"x": torch.zeros(1), "name": "a"}, torch.device("meta"))
    assert batch["x"].device.type == "meta"
    assert batch["name"] == "a"


# ------------------------------------------------------------------ batches, schedule, groups


def test_batches_visit_all_samples_and_start_anywhere():
    batches = Batches(7, 3, seed=2)
    first = [b for b, _ in zip(batches, range(20))]
    for epoch in range(10):
        assert len(set(first[2 * epoch] + first[2 * epoch + 1])) == 6
    for start in (0, 1, 5, 13):
        batches.start = start
        assert [b for b, _ in zip(batches, range(3))] == first[start : start + 3]
    assert next(iter(Batches(2, 16, 0))) in ([0, 1], [1, 0])  # fewer samples than a batch
    with pytest.raises(DataError, match="number of training samples: expected at least 1, found 0"):
        Batches(0, 4, 0)


def test_loaders_do_not_touch_the_random_numbers_of_torch():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    training, validation = loaders(Line(), Line(), 4, 0)
    next(iter(training))
    assert sum(len(b["x"]) for b in validation) == len(Line())
    assert torch.equal(torch.rand(3), expected)


def test_schedule():
    values = [warmup_cosine(s, 50, 0.2) for s in range(50)]
    assert values[0] == 0.1
    assert values[9] == values[10] == 1
    assert values == values[:10] + sorted(values[10:], reverse=True)
    assert 0 < values[-1] < 0.01
    assert warmup_cosine(0, 1, 0.0) == 1


def test_groups_hold_every_trainable_parameter_once():
    model = MaskedModel(get_config("small", image_size=(16, 16)), len(VARIABLES))
    model.decoder.requires_grad_(False)
    decay, no_decay = parameter_groups(model, 1.0, 0.05)
    found = [id(p) for group in (decay, no_decay) for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert no_decay["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decay["params"])
    learned = {id(model.embed.mask_token), id(model.embed.position_group)}
    assert learned <= {id(p) for p in no_decay["params"]}


def test_a_group_without_parameters_is_left_out():
    only_matrices = nn.Linear(2, 2, bias=False)
    assert [group["weight_decay"] for group in parameter_groups(only_matrices, 1.0, 0.05)] == [0.05]
