"Networks as baselines: planes, windows, the start at the share, and trainings that are killed."

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sslpdl_nb.baselines.neighbourhood import NeighbourhoodShare
from sslpdl_nb.baselines.networks import (
    FLOOR,
    TUNINGS,
    Feed,
    LeadWindow,
    Network,
    PlaneNet,
    RainTask,
    WithPlanes,
    _about,
    add_adapters,
    calibrated_log_loss,
    count_parameters,
    edge_logits,
    flip,
    internimage,
    random_flips,
    start_logits,
    tune,
    unet,
)
from sslpdl_nb.baselines.protocol import Climatology, check_baseline, toy, toy_skill
from sslpdl_nb.checkpoint import save_checkpoint
from sslpdl_nb.core import (
    VARIABLE_NAMES,
    VARIABLES,
    CheckpointError,
    DataError,
    get_config,
    set_seed,
)
from sslpdl_nb.finetune import UNet, rain_model
from sslpdl_nb.masking import MaskedModel
from sslpdl_nb.store import RainDataset, Standardizer

CONFIG = get_config(
    image_size=(16, 16), class_weights=(1.0, 1.0, 1.0), ppm_dim=8, fpn_dim=8, finetune_batch=8
)
OPTIONS = dict(steps=2, eval_every=2, lr=1e-2, valid_limit=8)


@pytest.fixture(scope="module")
def displaced():
    return toy("displaced", size=(16, 16))


def small_unet(config):
    return UNet(config, widths=(8, 16))


class Frames(nn.Module):
    "The mean over the frames, and a map for each class."

    def __init__(self, config):
        super().__init__()
        self.head = nn.Conv2d(len(VARIABLES), 3, 1)

    def forward(self, x):
        assert x.ndim == 5
        return self.head(x.mean(1))


class Amount(nn.Module):
    "A network with a fourth answer that is not a class."

    def __init__(self, config):
        super().__init__()
        self.head = nn.Conv2d(len(VARIABLES), 4, 1)

    def forward(self, x):
        return self.head(x)


def amount_loss(logits, rain, config):
    return ((logits[:, 3] - rain.nan_to_num().log1p()) ** 2).mean() + logits[:, :3].pow(2).mean()


def samples_of(t, leads):
    "The training samples of a toy as forecasts of several lead times each, in disorder."
    n = len(t.train) // len(leads) * len(leads)
    samples = t.train.samples.isel(sample=slice(0, n))
    start = np.repeat(np.datetime64("2001-01-01", "ns") + np.arange(n) * np.timedelta64(9, "D"), 1)
    start = np.repeat(start[: n // len(leads)], len(leads))
    lead = np.tile(leads, n // len(leads)).astype(float)
    hours = (lead * 3600e9).astype("timedelta64[ns]")
    times = dict(reference_time=start, lead_time=lead, valid_time=start + hours)
    samples = samples.assign_coords({k: ("sample", v) for k, v in times.items()})
    return samples.isel(sample=np.random.default_rng(0).permutation(n))


def test_planes_are_added_and_the_fields_are_shared(displaced):
    data = displaced.valid
    given = torch.randn(len(data), 2, 16, 16)
    item = WithPlanes(data, given)[3]
    assert torch.equal(item["x"][:16], data[3]["x"])
    assert torch.equal(item["x"][16:18], given[3])
    assert (item["x"][18] == data.lead_time[3] / 24).all()
    assert item["index"] == 3 and torch.equal(item["rain"], data[3]["rain"])
    assert WithPlanes(data, lead=False)[0]["x"].shape[0] == 16


def test_nothing_of_the_fields_is_copied(displaced):
    feed = Feed(Climatology().fit(displaced.train, displaced.valid), frames=2)
    wrapped = feed(displaced.train)
    assert wrapped.data.data is displaced.train


@pytest.mark.parametrize("leads", [(6, 12, 18), (6, 12, 18, 24, 30)])
def test_windows_have_the_nearest_leads_of_the_same_forecast(displaced, leads):
    samples = samples_of(displaced, leads)
    windows = LeadWindow(RainDataset(samples, displaced.train.standardizer))
    assert windows.frames == 3
    start, lead = samples["reference_time"].values, samples["lead_time"].values
    for i, row in enumerate(windows.rows):
        assert row[-1] == i and len(set(row)) == 3
        assert (start[row] == start[i]).all()
        assert lead[row[0]] < lead[row[1]]
        others = sorted(np.abs(np.array(leads) - lead[i]))[1:3]
        assert sorted(np.abs(lead[row[:-1]] - lead[i])) == others
    item = windows[5]
    x = windows.data.inputs()
    assert torch.equal(item["x"], x[windows.rows[5]])
    assert torch.equal(item["rain"], windows.data[5]["rain"])


def test_missing_leads_repeat_the_last_one(displaced):
    single = LeadWindow(displaced.valid)
    assert single.frames == 1 and single[0]["x"].shape[0] == 1
    padded = LeadWindow(displaced.valid, frames=3)
    assert (padded.rows == np.arange(len(padded))[:, None]).all()


def test_logits_of_a_start_are_its_probabilities():
    e = torch.rand(4, 2, 5, 5).sort(1, descending=True).values.clamp(0.01, 0.95)
    p = start_logits(e.logit()).softmax(1)
    assert torch.allclose(p[:, 1:].flip(1).cumsum(1).flip(1), e, atol=3e-4)
    crossed = torch.tensor([0.2, 0.7]).view(1, 2, 1, 1)
    p = start_logits(crossed.logit()).softmax(1).flatten()
    assert torch.allclose(p, torch.tensor([0.8, 0.0, 0.2]), atol=3e-4)


@pytest.mark.parametrize("build", [small_unet, rain_model, Frames])
def test_an_untrained_network_is_exactly_the_share(displaced, build):
    share = NeighbourhoodShare().fit(displaced.train, displaced.valid)
    options = dict(residual="share", steps=1, lr=1e-14, eval_every=1, window=build is Frames)
    network = Network(build, CONFIG, **options).fit(displaced.train, displaced.valid)
    p, q = network.predict(displaced.test), share.predict(displaced.test)
    assert np.abs(p - q).max() < 2 * FLOOR
    assert network.size == count_parameters(network.model) + share.size


def test_a_last_layer_that_is_hidden_is_refused(displaced):
    class Hidden(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.answer = nn.Conv2d(len(VARIABLES), 3, 1)
            self.never_used = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.answer(x)

    with pytest.raises(DataError, match="head"):
        network = Network(Hidden, CONFIG, residual="share", **OPTIONS)
        network.fit(displaced.train, displaced.valid)


def test_every_part_of_a_network_with_planes_learns(displaced):
    network = Network(small_unet, CONFIG, residual="share", steps=6, lr=1e-2, eval_every=6)
    model = network.fit(displaced.train, displaced.valid).model
    assert model.weight.abs().min() > 0 and model.log_a.abs().min() > 0
    assert model.weight.shape == (16, 3)
    ours = Network(rain_model, CONFIG, residual="share", **OPTIONS)
    assert ours.fit(displaced.train, displaced.valid).model.weight is None


def test_blocks_and_whole_give_the_same_planes(displaced, monkeypatch):
    share = NeighbourhoodShare().fit(displaced.train, displaced.valid)
    whole = edge_logits(share, displaced.train)
    import sslpdl_nb.baselines.networks as networks

    monkeypatch.setattr(networks, "_blocks", partial(networks._blocks, size=7))
    assert torch.equal(edge_logits(share, displaced.train), whole)
    assert whole.dtype == torch.float32


def test_wind_changes_its_sign_in_a_mirror():
    mean = np.linspace(-3, 3, 16)
    standardizer = Standardizer(tuple(mean), tuple(np.linspace(1, 2, 16)), "none")
    calm = torch.tensor(-mean / np.linspace(1, 2, 16)).float()
    raw = torch.randn(2, 16, 4, 4)
    x, rain = standardizer.transform(raw), torch.rand(2, 4, 4)
    for axis, across in ((-2, "v"), (-1, "u")):
        mirrored, rain2 = flip(torch.cat([x, raw[:, :1]], 1), rain, calm, axis)
        back = standardizer.inverse(mirrored[:, :16])
        sign = torch.tensor([-1.0 if n[0] == across else 1.0 for n in VARIABLE_NAMES])
        assert (sign < 0).sum() == 3
        assert torch.allclose(back, sign.view(-1, 1, 1) * raw.flip(axis), atol=1e-5)
        assert torch.equal(rain2, rain.flip(axis))
        assert torch.equal(mirrored[:, 16], raw[:, 0].flip(axis))
    before = x.clone()
    torch.manual_seed(0)
    mixed, _ = random_flips(x.repeat(50, 1, 1, 1), rain.repeat(50, 1, 1), calm)
    kept = (mixed[::2] == x[0]).all((1, 2, 3)).float().mean()
    assert 0.05 < kept < 0.5 and torch.equal(x, before)


def test_calibrated_log_loss_ignores_scale_and_shift_and_missing_pixels():
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(10, 3, 16, 16, generator=g)
    drawn = torch.distributions.Categorical(logits=logits.movedim(1, -1)).sample()
    rain = torch.tensor([0.0, 1.0, 20.0])[drawn]
    rain[:, 0] = torch.nan
    known = ~rain.isnan()
    plain = nn.functional.cross_entropy(logits.movedim(1, -1)[known], drawn[known])
    best = calibrated_log_loss(logits, rain, (0.1, 10.0))
    assert best == pytest.approx(float(plain), abs=0.01)
    spoilt = logits / 4 + torch.tensor([0.0, 2.0, -1.0]).view(3, 1, 1)
    assert calibrated_log_loss(spoilt, rain, (0.1, 10.0)) == pytest.approx(best, abs=1e-3)
    spoilt[known.logical_not().unsqueeze(1).expand_as(spoilt)] = 1e3
    assert calibrated_log_loss(spoilt, rain, (0.1, 10.0)) == pytest.approx(best, abs=1e-3)
    few = calibrated_log_loss(logits, rain, (0.1, 10.0), pixels=500)
    assert best <= few < best + 0.05


def test_early_stopping_keeps_the_best_evaluation(displaced):
    network = Network(small_unet, CONFIG, steps=40, eval_every=4, lr=3e-2, valid_limit=9)
    network.fit(displaced.train, displaced.valid)
    losses = [e["log_loss"] for e in network.history]
    assert losses[-1] > min(losses)  # it does overfit
    rows = np.unique(np.linspace(0, len(displaced.valid) - 1, 9).round().astype(int))
    p = torch.from_numpy(network.predict(displaced.valid))[rows]
    rain = displaced.valid.observed_rain()[rows]
    assert calibrated_log_loss(p.log(), rain, CONFIG.edges) == pytest.approx(min(losses), abs=1e-4)


@pytest.mark.parametrize("how", TUNINGS)
def test_only_the_wanted_parts_learn(displaced, tmp_path, how):
    pretrained = MaskedModel(CONFIG, len(VARIABLES))
    file = tmp_path / "pretrained.safetensors"
    save_checkpoint(file, pretrained, {})
    ours = internimage(CONFIG, init=file, tune=how, **OPTIONS)
    net = ours.fit(displaced.train, displaced.valid).model.net
    after = net.state_dict()
    moved = [
        not torch.equal(after.get(k, after.get(k.replace(".weight", ".linear.weight"))), v)
        for k, v in pretrained.state_dict().items()
        if k.startswith("encoder.") and k.endswith(".weight")
    ]
    assert any(moved) == (how in ("full", "slow"))
    if how == "lora":
        assert any(p.abs().max() > 0 for n, p in net.named_parameters() if n.endswith(".b"))
    assert ours.size == sum(p.numel() for p in ours.model.parameters() if p.requires_grad)


def test_slow_is_slower(displaced):
    set_seed(0)
    start, change = rain_model(CONFIG).embed.project.weight, {}
    for how in ("full", "slow"):
        ours = internimage(CONFIG, tune=how, steps=1, lr=1e-3, eval_every=1)
        net = ours.fit(displaced.train, displaced.valid).model.net
        change[how] = float((net.embed.project.weight - start).detach().abs().mean())
    assert change["slow"] == pytest.approx(0.1 * change["full"], rel=0.1)


def test_what_cannot_be_tuned_or_trained_is_refused(displaced):
    with pytest.raises(DataError, match="encoder"):
        tune(small_unet(CONFIG), "probe")
    with pytest.raises(DataError, match="full"):
        tune(rain_model(CONFIG), "a little")
    with pytest.raises(DataError, match="mixed"):
        RainTask(CONFIG, "hope")
    for options, match in ((dict(loss="hope"), "mixed"), (dict(residual="hope"), "share")):
        with pytest.raises(DataError, match=match):
            unet(CONFIG, **options).fit(displaced.train, displaced.valid)


def test_a_checkpoint_of_another_network_is_refused(displaced, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", small_unet(CONFIG), {})
    with pytest.raises(CheckpointError, match="missing"):
        internimage(CONFIG, init=tmp_path / "a.safetensors").fit(displaced.train, displaced.valid)


def test_adapters_do_nothing_at_first():
    net = rain_model(CONFIG).eval()
    x = torch.randn(2, 16, 16, 16)
    before = net(x).detach()
    assert add_adapters(net.encoder) > 20
    assert torch.allclose(net(x), before, atol=1e-6)


@pytest.mark.parametrize("options", [dict(window=True), dict(window=True, residual="share")])
def test_windows_reach_the_network(displaced, options):
    network = Network(Frames, CONFIG, **OPTIONS, **options)
    assert network.fit(displaced.train, displaced.valid).predict(displaced.test).shape[1] == 3


def test_a_loss_of_ones_own_and_answers_that_are_no_classes(displaced):
    network = Network(Amount, CONFIG, loss=amount_loss, **OPTIONS)
    p = network.fit(displaced.train, displaced.valid).predict(displaced.test)
    assert p.shape[1] == 3 and np.allclose(p.sum(1), 1, atol=1e-5)


def test_over_sampling_sees_heavy_rain_more_often(displaced):
    seen = {}

    def spy(logits, rain, config, importance=None):
        if logits.requires_grad:
            seen.setdefault(importance is None, []).append(float((rain >= 10).float().mean()))
        return (logits**2).mean()

    for even in (1.0, 0.1):
        network = Network(Amount, CONFIG, loss=spy, even=even, steps=60, eval_every=60)
        network.fit(displaced.train, displaced.valid)
    assert np.mean(seen[False]) > 1.02 * np.mean(seen[True])


def test_hidden_tokens_only_where_they_can_be_hidden():
    model = PlaneNet(rain_model(CONFIG))
    batch = dict(x=torch.randn(2, 16, 16, 16), rain=torch.rand(2, 16, 16))
    torch.manual_seed(0)
    assert RainTask(CONFIG).loss(model, batch) != RainTask(CONFIG).loss(model, batch)
    other = PlaneNet(small_unet(CONFIG))
    assert RainTask(CONFIG).loss(other, batch) == RainTask(CONFIG).loss(other, batch)


def test_unet_learns_the_humid_toy():
    plain = get_config(image_size=(32, 32), class_weights=(1.0, 1.0, 1.0))
    make = partial(Network, partial(UNet, widths=(16, 32)), plain)
    options = dict(loss="one_hot", lr=1e-2, steps=30, eval_every=15)
    check_baseline(lambda: make(**options), toy("humid"), at_least=(0.5, 0.15))


def test_from_the_share_it_is_at_least_as_good_as_the_share():
    t = toy("displaced")
    plain = get_config(image_size=(32, 32), class_weights=(1.0, 1.0, 1.0))
    share = NeighbourhoodShare().fit(t.train, t.valid)
    options = dict(loss="one_hot", lr=3e-3, steps=30, eval_every=5, residual="share")
    network = Network(partial(UNet, widths=(16, 32)), plain, **options).fit(t.train, t.valid)
    gain = np.subtract(*(toy_skill(b.predict(t.test), t) for b in (network, share)))
    assert gain.min() >= 0


KILLED = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from test_baselines_networks import CONFIG, RESUMED, Network, rain_model, toy
from sslpdl_nb.baselines.losses import LOSSES

def slow(*args, **more):
    time.sleep(0.2)
    return LOSSES["mixed"](*args, **more)

slow.__qualname__ = "mixed"
torch.set_num_threads(1)
t = toy("displaced", size=(16, 16))
Network(rain_model, CONFIG, state={state!r}, loss=slow, **RESUMED).fit(t.train, t.valid)
"""
RESUMED = dict(residual="share", augment=True, even=0.5, steps=12, eval_every=3)


def test_a_killed_training_goes_on_with_the_same_bits(displaced, tmp_path):
    state = tmp_path / "run.state"
    code = KILLED.format(tests=str(Path(__file__).parent), state=str(state))
    process = subprocess.Popen([sys.executable, "-c", code])  # slow, so that it can be killed
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 0 < torch.load(state, weights_only=True)["step"] < 12
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    resumed = Network(rain_model, CONFIG, state=state, **RESUMED)
    whole = Network(rain_model, CONFIG, **RESUMED)
    for network in (resumed, whole):
        network.fit(displaced.train, displaced.valid)
    torch.set_num_threads(threads)
    assert resumed.history == whole.history
    pairs = zip(resumed.model.state_dict().values(), whole.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_options_are_told_without_addresses(displaced):
    made = [
        Network(partial(builder, 3), CONFIG, loss=amount_loss, residual=Climatology)
        for builder in (lambda n, c: small_unet(c), lambda n, c: small_unet(c))
    ]
    told = [json.dumps(_about(network, displaced.train)) for network in made]
    assert told[0] == told[1] and "0x" not in told[0] and "amount_loss" in told[0]


def test_the_state_of_another_training_is_refused(displaced, tmp_path):
    options = dict(OPTIONS, state=tmp_path / "run.state")
    Network(small_unet, CONFIG, **options).fit(displaced.train, displaced.valid)
    for other in (dict(loss="one_hot"), dict(augment=True), dict(name="other")):
        with pytest.raises(CheckpointError, match="another"):
            Network(small_unet, CONFIG, **options, **other).fit(displaced.train, displaced.valid)
    with pytest.raises(CheckpointError, match="another"):
        Network(small_unet, CONFIG, **options).fit(displaced.valid, displaced.valid)
