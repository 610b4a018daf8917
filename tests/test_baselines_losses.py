"Losses for rare classes: known answers, gradients, missing pixels; over-sampling and its weights."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sslpdl_nb.baselines import losses
from sslpdl_nb.baselines.losses import (
    LOSSES,
    HeavyBatches,
    Weighted,
    atmosphere_chance,
    effective_weights,
    get_loss,
    heavy_loaders,
    inverse_weights,
    soft_counts,
)
from sslpdl_nb.core import DataError, get_config, set_seed
from sslpdl_nb.labels import label_loss, mixed_labels, one_hot
from sslpdl_nb.train import fit, loaders, parameter_groups

CONFIG = get_config("small")
PLAIN = replace(CONFIG, class_weights=(1.0, 1.0, 1.0))
SEVEN = replace(CONFIG, edges=(0.1, 1.0, 2.0, 5.0, 10.0, 20.0), class_weights=(1.0,) * 7)
NAMES = ["one_hot", "density", "mixed", "smoothed", "focal", "class_balanced", "ordinal"]
NAMES += ["soft_csi", "tversky", "dice"]
every_loss = pytest.mark.parametrize("name", NAMES)


def example(config=CONFIG, b=3, h=4, w=5, seed=0):
    "Random logits, and rain with gaps and all classes."
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(b, len(config.edges) + 1, h, w, generator=g, dtype=torch.double)
    rain = 60 * torch.rand(b, h, w, generator=g, dtype=torch.double) ** 4
    rain[torch.rand(rain.shape, generator=g) < 0.2] = torch.nan
    return z, rain


def by_loops(name, z, rain, config):
    "The losses once more, pixel by pixel in plain Python."
    p = np.asarray(z.softmax(1))
    pairs = [
        (p[i, :, r, c], float(rain[i, r, c]))
        for i, r, c in np.ndindex(*rain.shape)
        if not math.isnan(rain[i, r, c])
    ]
    edges, w, n = config.edges, config.class_weights, len(config.edges) + 1
    classes = [sum(y >= e for e in edges) for _, y in pairs]
    if name == "class_balanced":
        counts = [classes.count(k) for k in range(n)]
        w = [1 / sum(0.9999**j for j in range(max(c, 1))) for c in counts]
    if name in ("one_hot", "class_balanced", "smoothed", "focal", "ordinal"):
        total = weight = 0.0
        for (q, _), k in zip(pairs, classes):
            if name == "smoothed":
                label = [0.9 * (j == k) + 0.1 / n for j in range(n)]
                total -= sum(w[j] * label[j] * math.log(q[j]) for j in range(n))
                weight += sum(w[j] * label[j] for j in range(n))
                continue
            factor = (1 - q[k]) ** 2 if name == "focal" else 1.0
            value = -factor * math.log(q[k])
            if name == "ordinal":
                reached = [(sum(q[j:]), k >= j) for j in range(1, n)]
                value = -np.mean([math.log(s if o else 1 - s) for s, o in reached])
            total, weight = total + w[k] * value, weight + w[k]
        return total / weight
    scores = []
    for j in range(1, n):
        s = np.array([q[j:].sum() for q, _ in pairs])
        o = np.array([k >= j for k in classes], float)
        h, m, f = (s * o).sum(), ((1 - s) * o).sum(), (s * (1 - o)).sum()
        score = (h + 1) / (h + m + f + 1)
        if name == "tversky":
            score = (h + 1) / (h + 0.3 * f + 0.7 * m + 1)
        if name == "dice":
            score = (2 * h + 1) / ((s**2).sum() + o.sum() + 1)
        scores.append(score)
    return 1 - np.mean(scores)


def test_the_list_is_complete():
    assert list(LOSSES) == [*NAMES, "wide"] and get_loss("focal") is losses.focal_loss
    with pytest.raises(DataError, match="expected one of .*'tversky'.* found 'tverski'"):
        get_loss("tverski")


@pytest.mark.parametrize("config", [CONFIG, SEVEN], ids=["3 classes", "7 classes"])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("density", "mixed")])
def test_equals_plain_loops(name, config):
    z, rain = example(config)
    assert math.isclose(LOSSES[name](z, rain, config), by_loops(name, z, rain, config))


def test_mixed_is_the_loss_of_fine_tuning():
    z, rain = example()
    labels = mixed_labels(rain, CONFIG.edges, CONFIG.alpha, CONFIG.beta)
    expected = label_loss(z, labels, ~rain.isnan(), CONFIG.class_weights)
    assert torch.equal(LOSSES["mixed"](z, rain, CONFIG), expected)
    for beta, same in ((0.0, "density"), (1.0, "one_hot")):
        mixed = LOSSES["mixed"](z, rain, replace(CONFIG, beta=beta))
        assert torch.isclose(mixed, LOSSES[same](z, rain, CONFIG))


@every_loss
def test_gradient_by_finite_differences(name):
    z, rain = example(b=2, h=2, w=3)
    importance = torch.tensor([0.5, 2.0], dtype=torch.double)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: LOSSES[name](t, rain, CONFIG, importance), z)


@every_loss
def test_missing_pixels_count_for_nothing(name):
    z, rain = example()
    z.requires_grad_()
    loss = LOSSES[name](z, rain, CONFIG)
    loss.backward()
    assert (z.grad.movedim(1, -1)[rain.isnan()] == 0).all()
    moved = torch.where(rain.isnan().unsqueeze(1), 1e3, z.detach())
    assert torch.equal(LOSSES[name](moved, rain, CONFIG), loss.detach())


@every_loss
def test_nothing_observed_costs_nothing(name):
    z, rain = example()
    z.requires_grad_()
    loss = LOSSES[name](z, rain * torch.nan, CONFIG)
    loss.backward()
    assert loss == 0 and (z.grad == 0).all()


@every_loss
def test_importance_is_repetition(name):
    z, rain = example()
    loss = LOSSES[name](z, rain, CONFIG, torch.tensor([1, 3, 0]))
    again = [0, 1, 1, 1]
    assert torch.isclose(loss, LOSSES[name](z[again], rain[again], CONFIG))


@every_loss
def test_extreme_logits_stay_finite(name):
    z, rain = example()
    for scale in (1e4, -1e4):
        large = (scale * z).float().requires_grad_()
        loss = LOSSES[name](large, rain.float(), CONFIG)
        loss.backward()
        assert loss.isfinite() and large.grad.isfinite().all()


@every_loss
def test_a_certain_and_right_forecast_is_best(name):
    _, rain = example()
    rain = torch.where(rain >= 10, 30.0, torch.where(rain >= 0.1, 0.1, 0.0))  # nodes of the hats
    right = LOSSES[name](40 * one_hot(rain), rain, CONFIG)
    wrong = LOSSES[name](40 * one_hot(rain).flip(1), rain, CONFIG)
    if name != "smoothed":
        assert right < 1e-6
    assert wrong > right + 0.4


@every_loss
def test_half_precision_is_promoted(name):
    z, rain = example()
    loss = LOSSES[name](z.bfloat16(), rain.float(), CONFIG)
    assert loss.dtype == torch.float32
    assert torch.isclose(loss, LOSSES[name](z.bfloat16().float(), rain.float(), CONFIG))


@every_loss
def test_wrong_shapes_are_refused(name):
    z, rain = example()
    with pytest.raises(DataError, match=r"shape of the logits: expected \(3, 3, 4, 5\)"):
        LOSSES[name](z[:, :2], rain, CONFIG)
    with pytest.raises(DataError, match="shape of the logits"):
        LOSSES[name](z, rain, SEVEN)
    with pytest.raises(DataError, match=r"shape of the importance: expected \(3,\), found \(2,\)"):
        LOSSES[name](z, rain, CONFIG, torch.ones(2))


def minimiser(loss, rain, config, steps=300):
    "The class probabilities that minimise the loss, the same for all pixels of a row."
    z = torch.zeros(1, 3, len(rain[0]), 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.3)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(z.expand(*one_hot(rain).shape), rain, config).backward()
        optimizer.step()
        slower.step()
    return z.detach().softmax(1)[0, :, :, 0].T


def three_climates():
    "Rows of 100 pixels with known frequencies of the classes."
    truth = torch.tensor([[0.9, 0.09, 0.01], [0.3, 0.6, 0.1], [0.05, 0.35, 0.6]]).double()
    rates = torch.tensor([0.0, 2.0, 20.0], dtype=torch.double)
    rows = [rates.repeat_interleave((100 * row).round().long()) for row in truth]
    return truth, torch.stack(rows)[None]


def test_which_losses_are_proper():
    truth, rain = three_climates()
    errors = {n: (minimiser(f, rain, PLAIN) - truth).abs().max() for n, f in LOSSES.items()}
    assert {n for n, e in errors.items() if e < 0.005} == {"one_hot", "ordinal"}


def test_class_weights_add_their_logarithm():
    truth, rain = three_climates()
    expected = torch.tensor(CONFIG.class_weights) * truth
    expected = expected / expected.sum(1, keepdim=True)
    found = minimiser(LOSSES["one_hot"], rain, CONFIG)
    assert torch.allclose(found, expected, atol=0.003)
    shift = found.log() - truth.log()
    shift = (shift - shift[:, :1]).mean(0)
    assert torch.allclose(shift, torch.tensor(CONFIG.class_weights).double().log(), atol=0.05)


def test_hats_warn_from_the_middle_between_two_nodes():
    rain = torch.tensor([[[5.04], [5.06], [9.99]]], dtype=torch.double)
    for name, decided in (("density", [1, 2, 2]), ("one_hot", [1, 1, 1])):
        assert minimiser(LOSSES[name], rain, PLAIN).argmax(1).tolist() == decided


def test_smoothing_with_class_weights_ranks_wrongly():
    rain = torch.tensor([[[0.0], [2.0]]], dtype=torch.double)
    fair, weighted = (minimiser(LOSSES["smoothed"], rain, c)[:, 2] for c in (PLAIN, CONFIG))
    assert torch.allclose(fair, torch.tensor([1 / 30, 1 / 30]).double(), atol=1e-3)
    assert torch.allclose(weighted, torch.tensor([10 / 43, 10 / 151]).double(), atol=2e-3)


def test_smoothing_follows_alpha():
    z, rain = example()
    label = 0.7 * one_hot(rain) + 0.1
    expected = label_loss(z, label, ~rain.isnan(), CONFIG.class_weights)
    assert torch.isclose(LOSSES["smoothed"](z, rain, replace(CONFIG, alpha=0.3)), expected)


def test_soft_counts_of_a_decision_are_the_counts():
    _, rain = example()
    decided = one_hot(rain.roll(1, 0))
    h, m, f = soft_counts(200 * decided, rain, CONFIG)
    for k, edge in enumerate(CONFIG.edges):
        says, is_so = decided[:, k + 1 :].sum(1) > 0, rain >= edge
        known = ~rain.isnan()
        says = torch.where(rain.roll(1, 0).isnan(), (2 - k) / 3, says.double())  # all logits 0
        counts = [(says * is_so), (1 - says) * is_so, says * ~is_so * known]
        assert torch.allclose(
            torch.stack([h[k], m[k], f[k]]), torch.stack([c.sum() for c in counts])
        )


def test_effective_weights():
    assert np.allclose(effective_weights((5, 50, 500), b=0.0), 1)
    w = effective_weights((1, 10, 100), b=1 - 1e-9)
    assert np.allclose(np.array(w) / w[2], (100, 10, 1), rtol=1e-5)
    assert np.isclose(np.mean(w), 1) and np.isfinite(effective_weights((0, 0, 0))).all()
    with pytest.raises(DataError, match="effective_weights: b"):
        effective_weights((1, 2), b=1.0)


def archive(n=12, heavy=(3, 4, 5)):
    "Twelve maps of four atmospheres; one of them is heavy."
    rain = torch.zeros(n, 2, 2)
    rain[list(heavy), 0] = 20.0
    rain[:, 1, 1] = torch.nan
    return rain, np.arange(n) // 3


def test_chance_goes_to_whole_atmospheres():
    rain, groups = archive(heavy=(3,))
    chance = atmosphere_chance(rain, groups, least=0.4)
    assert np.isclose(chance.sum(), 1)
    assert np.allclose(chance[[3, 4, 5]], 0.4 / 12 + 0.6 / 3)
    assert np.allclose(np.delete(chance, [3, 4, 5]), 0.4 / 12)
    assert np.allclose(atmosphere_chance(rain, groups, least=1.0), 1 / 12)
    assert np.allclose(atmosphere_chance(rain * torch.nan, groups), 1 / 12)


def test_chance_counts_observed_pixels_only():
    rain, groups = archive(6, heavy=(0, 3))
    rain[3:, 0, 1] = torch.nan  # the second atmosphere has fewer observations, and 1 heavy of 6
    chance = atmosphere_chance(rain, groups, least=0.1)
    assert np.isclose((chance[3] - 0.1 / 6) / (chance[0] - 0.1 / 6), (1 / 6) / (2 / 9))


def test_chance_refuses_nonsense():
    rain, groups = archive()
    for least in (0.0, -1, 1.5, math.nan):
        with pytest.raises(DataError, match="least"):
            atmosphere_chance(rain, groups, least)
    with pytest.raises(DataError, match="5 for 12 samples"):
        atmosphere_chance(rain, groups[:5])
    with pytest.raises(DataError, match="0 for 0 samples"):
        atmosphere_chance(rain[:0], groups[:0])


def test_inverse_weights_make_means_right():
    rain, groups = archive()
    chance = atmosphere_chance(rain, groups)
    w = inverse_weights(chance)
    values = np.arange(12.0)
    assert np.isclose((chance * w * values).sum(), values.mean())
    assert w.max() <= 4 + 1e-9
    assert np.allclose(inverse_weights([2, 2, 0]), [1 / 1.5, 1 / 1.5, 0])


def first(sampler, steps):
    return [batch for _, batch in zip(range(steps), sampler)]


def test_batches_depend_on_seed_and_step_alone():
    chance = np.arange(1, 11.0)
    whole = first(HeavyBatches(10, 4, 0, chance), 30)
    late = HeavyBatches(10, 4, 0, chance)
    late.start = 17
    assert first(late, 13) == whole[17:]
    assert first(HeavyBatches(10, 4, 1, chance), 30) != whole
    assert len({tuple(b) for b in whole}) > 25 and all(len(b) == 4 for b in whole)


def test_batches_follow_the_chances():
    chance = np.array([0.5, 0.3, 0.2, 0.0])
    drawn = np.array(first(HeavyBatches(4, 4, 3, 7 * chance), 5000))
    frequency = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    assert np.abs(frequency - chance).max() < 4 * np.sqrt(0.25 / drawn.size)
    pairs = np.bincount(4 * drawn[:, 0] + drawn[:, 1], minlength=16).reshape(4, 4) / len(drawn)
    assert np.abs(pairs - np.outer(chance, chance)).max() < 4 * np.sqrt(0.19 / len(drawn))
    after = np.bincount(4 * drawn[:-1, 0] + drawn[1:, 0], minlength=16).reshape(4, 4)
    independent = np.outer(chance, chance)
    assert np.abs(after / (len(drawn) - 1) - independent).max() < 4 * np.sqrt(0.19 / len(drawn))


@pytest.mark.parametrize("chance", [[1, 2], [1, -1, 1], [0, 0, 0], [1, math.nan, 1], [[1, 1, 1]]])
def test_batches_refuse_nonsense(chance):
    with pytest.raises(DataError, match="HeavyBatches: chance"):
        HeavyBatches(3, 2, 0, chance)


def test_batches_refuse_no_samples():
    with pytest.raises(DataError, match="at least 1, found 0"):
        HeavyBatches(0, 2, 0, [])


class Maps(torch.utils.data.Dataset):
    "Inputs that say where it rains, and the rain of `archive`."

    def __init__(self, n=12):
        self.rain, self.groups = archive(n)
        noise = torch.randn(n, 2, 2, generator=torch.Generator().manual_seed(0))
        self.x = torch.stack([(self.rain.nan_to_num() > 1).float(), noise], 1)

    def __len__(self):
        return len(self.rain)

    def __getitem__(self, i):
        return dict(x=self.x[i], rain=self.rain[i])


class Task:
    "A loss by name, interrupted before a step."

    def __init__(self, name, stop=None):
        self.name, self.stop, self.step = name, stop, 0

    def loss(self, model, batch):
        if self.step == self.stop:
            raise KeyboardInterrupt
        self.step += 1
        return LOSSES[self.name](model(batch["x"]), batch["rain"], CONFIG, batch["importance"])

    def scores(self, model, loader):
        return dict(size=float(sum(model(b["x"]).abs().mean() for b in loader)))


def trained(name, stop=None, state=None):
    "Weights after 15 steps with over-sampling."
    set_seed(0)
    data = Maps()
    chance = atmosphere_chance(data.rain, data.groups)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Dropout(0.3), nn.Conv2d(8, 3, 1))
    options = dict(groups=parameter_groups(model, 0.02, 0.01), eval_every=5, progress=False)
    parts = heavy_loaders(data, data, 4, 0, chance)
    fit(model, Task(name, stop), *parts, steps=15, state=state, **options)
    return model.state_dict()


@pytest.mark.parametrize("name", ["ordinal", "soft_csi"])
def test_a_resumed_training_is_equal_bit_for_bit(name, tmp_path):
    state = tmp_path / "train.state"
    with pytest.raises(KeyboardInterrupt):
        trained(name, 8, state)
    assert state.exists()
    resumed, whole = trained(name, state=state), trained(name)
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_validation_is_as_without_over_sampling():
    data = Maps()
    chance = atmosphere_chance(data.rain, data.groups)
    train, valid = heavy_loaders(data, data, 4, 0, chance)
    same = [b["rain"] for b in loaders(data, data, 4, 0)[1]]
    found = list(valid)
    assert all(torch.equal(a.nan_to_num(), b["rain"].nan_to_num()) for a, b in zip(same, found))
    assert "importance" not in found[0]
    batch = next(iter(train))
    assert batch["importance"].shape == (4,) and batch["importance"].dtype == torch.float32


def test_weighted_refuses_another_number():
    data = Maps()
    assert len(Weighted(data, np.ones(12))) == 12
    with pytest.raises(DataError, match="Weighted: importance: expected 12.* found 3"):
        Weighted(data, np.ones(3))


def test_weights_keep_the_learned_frequency_honest():
    data = Maps()
    chance = atmosphere_chance(data.rain, data.groups)
    w = torch.from_numpy(inverse_weights(chance))
    drawn = torch.tensor(first(HeavyBatches(12, 50, 0, chance), 40)).flatten()
    z = torch.zeros(3, dtype=torch.double, requires_grad=True)
    for weights, share in ((w[drawn], 6 / 36), (None, 0.75 * 2 / 3 + 0.25 * 6 / 36)):
        optimizer = torch.optim.LBFGS([z], max_iter=50, line_search_fn="strong_wolfe")

        def closure(weights=weights, optimizer=optimizer):
            optimizer.zero_grad()
            logits = z.view(1, 3, 1, 1).expand(len(drawn), 3, 2, 2)
            loss = LOSSES["one_hot"](logits, data.rain[drawn].double(), PLAIN, weights)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert abs(float(z.softmax(0)[2].detach()) - share) < 0.03


def test_wide_labels_by_loops():
    rain = torch.tensor(np.random.default_rng(3).gamma(0.4, 12.0, (2, 7, 5)))
    rain[0, 1:3] = math.nan
    labels, reach = one_hot(rain), 1.5
    found = losses.shares_around(labels, reach)
    for b, i, j in np.ndindex(2, 7, 5):
        total = torch.zeros(3, dtype=torch.float64)
        for k, m in np.ndindex(7, 5):
            if max(abs(k - i), abs(m - j)) <= round(3 * reach):
                total += labels[b, :, k, m] * math.exp(-((k - i) ** 2 + (m - j) ** 2) / 4.5)
        assert torch.allclose(found[b, :, i, j], total / total.sum())


def test_wide_loss_has_right_gradients_and_ignores_what_is_missing():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    rain = 20 * torch.rand(2, 6, 4, dtype=torch.float64, generator=generator)
    rain[1, :, 2:] = math.nan
    importance = torch.tensor([1.0, 2.0])

    def loss(t):
        return losses.wide_loss(t, rain, CONFIG, importance, reach=1.0)

    assert torch.autograd.gradcheck(loss, z)
    moved = z.detach().clone()
    moved[1, :, :, 2:] += 5
    assert torch.isclose(loss(moved), loss(z))
    heavy = torch.full_like(rain, 30.0)
    right = losses.wide_loss(40 * one_hot(heavy), heavy, CONFIG)
    assert right < 1e-6
