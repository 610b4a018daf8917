"Pretexts: what is hidden, what a fresh network answers, scores without chance, sentences."

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from study_files import write_store, write_study

from sslpdl_nb.core import RAIN, VARIABLES, DataError, get_config
from sslpdl_nb.experiments import pretexts
from sslpdl_nb.experiments.pretexts import (
    Checkpoint,
    Denoise,
    Filled,
    Places,
    RainOnly,
    Variables,
    beaten,
    checkpoints,
    pretext_name,
    relation,
    remaining,
    smooth_baseline,
    surface_sentence,
)
from sslpdl_nb.experiments.runner import Study, results, run
from sslpdl_nb.masking import MaskedModel, pixel_mask
from sslpdl_nb.pretrain import Pretrain
from sslpdl_nb.train import evaluate, train_step

CONFIG = get_config("small", image_size=(32, 32))
SINGLE = get_config("small", image_size=(32, 32), token_variables=1)
SHAPE = (len(VARIABLES), 32, 32)
X = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3) / 16
NAMES = ("filled", "places", "variables", "rain_only", "denoise")


def network(config=CONFIG):
    torch.manual_seed(0)
    return MaskedModel(config, len(VARIABLES))


def hidden_by(task, config=CONFIG):
    mask = task(config).mask(network(config), 2, torch.Generator().manual_seed(0))
    return pixel_mask(mask, config.token_variables, config.patch_size, SHAPE)


# ------------------------------------------------------------------ tasks


def test_places_hide_all_variables_and_variables_hide_all_places():
    torn = hidden_by(Places)
    assert (torn == torn[:, :1]).all() and torn.mean() == 0.75
    gone = hidden_by(Variables)
    assert (gone == gone[:, :, :1, :1]).all() and gone.mean() == 0.75
    groups = gone[:, ::4, 0, 0].repeat_interleave(4, 1)
    assert (gone[:, :, 0, 0] == groups).all()


def test_rain_only_hides_the_rain_and_needs_tokens_of_one_variable():
    gone = hidden_by(RainOnly, SINGLE)
    assert gone[:, RAIN].all() and gone.sum() == gone[:, RAIN].sum()
    with pytest.raises(DataError, match="token_variables: expected 1, found 4"):
        RainOnly(CONFIG)


def test_filled_starts_exactly_at_the_nearest_pixel_and_can_leave_it():
    model, task = network(), Filled(CONFIG)
    loader = [dict(x=X)]
    random = evaluate(model, task, loader)
    assert random["masked_loss"] > random["nearest"]
    task.start(model)
    before = evaluate(model, task, loader)
    assert before["masked_loss"] == before["nearest"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2):
        train_step(model, task, dict(x=X), optimizer, clip_norm=1.0, step=step)
    assert evaluate(model, task, loader)["masked_loss"] != before["masked_loss"]
    assert all(p.grad.any() for name, p in model.named_parameters() if "mask_token" in name)


def test_other_tasks_leave_a_fresh_network_alone():
    model = network()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    for task in (Pretrain, Places, Denoise):
        task(CONFIG).start(model)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@torch.no_grad()
def test_scores_with_noise_do_not_depend_on_when_they_are_computed():
    model, loader = network().eval(), [dict(x=X)]
    first = Denoise(CONFIG).scores(model, loader)
    state = torch.get_rng_state()
    torch.randn(7)
    assert Denoise(CONFIG).scores(model, loader) == first
    torch.set_rng_state(state)
    Denoise(CONFIG).scores(model, loader)
    assert torch.equal(torch.get_rng_state(), state)  # a training goes on as without scores
    assert Denoise(CONFIG, seed=1).scores(model, loader) != first


def test_the_simple_guess_below_noise_is_a_mean_of_25_pixels():
    guess = smooth_baseline(torch.zeros(4, *SHAPE), None, 4, 4)
    assert float(guess[:, :, 2:-2, 2:-2].var()) == pytest.approx(1 / 25, rel=0.05)
    assert float(guess[:, :, 0, 0].var()) == pytest.approx(1 / 9, rel=0.4)  # edges count inside


# ------------------------------------------------------------------ in the runner


def test_every_pretext_makes_a_checkpoint_that_fine_tuning_takes(tmp_path):
    (tmp_path / "data").mkdir()
    write_store(tmp_path / "data" / "toy.nc")
    cells = [
        dict(pretrain=dict(pretrain_steps=2, function=f"{pretexts.__name__}:{name}"))
        | (dict(token_variables=1) if name == "rain_only" else {})
        for name in NAMES
    ]
    base = dict(image_size=[32, 32], method="internimage", atmospheres=2, steps=2)
    base |= dict(valid_limit=4, pretrain_batch=4)
    study = Study.load(write_study(tmp_path, base=base, cells=cells))
    assert {row["state"] for row in run(study)} == {"finished"}
    made = checkpoints(results(study))
    assert [c.name.split(" (")[0] for c in made] == [n.replace("_", " ") for n in NAMES]
    assert all(np.isfinite([c.remaining, c.score(0.1)]).all() for c in made)
    assert len({c.score(0.1, "Brier skill") for c in made}) == len(made)


def test_the_study_is_one():
    cells = Study.load("experiments/pretexts.yaml").cells()
    names = {pretext_name(cell) for cell in cells}
    assert len(names) == 11 and len(cells) == 33
    small = Study.load("experiments/pretexts.yaml", fast=True).cells()
    assert len(small) == 1 and small[0]["archive"] == "study"


# ------------------------------------------------------------------ sentences


def test_names_say_what_was_hidden_how_long():
    own = dict(pretrain_steps=2000, pretrain_mask_ratio=0.9)
    assert pretext_name(dict(pretrain=own)) == "cubes (2000 steps, 90 % hidden)"
    assert pretext_name(dict(token_variables=1)) == "from scratch (tokens of one variable)"
    assert pretext_name({}) == "from scratch"


def test_remaining_loss_is_measured_by_the_best_simple_guess():
    entry = dict(step=5, loss=0.01, masked_loss=0.2, mean=0.7, nearest=0.4, visible_mean=0.5)
    assert remaining(entry) == pytest.approx(0.5)


def test_checkpoints_that_two_studies_share_are_there_once():
    def one(key, seed, loss):
        before = dict(key=key, seconds=60.0, history=[dict(masked_loss=loss, nearest=1.0)])
        cell = dict(seed=seed, pretrain=dict(pretrain_steps=3))
        return SimpleNamespace(cell=cell, record=dict(pretrained=before), result=f"result {seed}")

    scratch = SimpleNamespace(cell=dict(seed=0), record=dict(pretrained=None), result="")
    made = checkpoints(
        [one("a", 0, 2.0), one("a", 1, 2.0), scratch, one("b", 0, 0.5), one("a", 1, 2.0)]
    )
    assert [c.remaining for c in made] == [2.0, 0.5] and made[0].minutes == 1
    assert made[0].results == {0: "result 0", 1: "result 1"}


def test_a_pretext_that_is_as_good_as_the_simple_guess_has_not_beaten_it():
    made = [Checkpoint(n, {}, left, 1, {}) for n, left in (("a", 1.0), ("b", 0.4), ("c", 0.2))]
    assert beaten(made) == "Better than the best simple guess: c 0.20, b 0.40. Not better: a 1.00."
    assert beaten(made[:1]).startswith("Better than the best simple guess: none.")


def test_chance_passes_the_range_test_in_one_of_twenty_cases_and_seeds_do_not_matter():
    rng = np.random.default_rng(0)
    said = 0
    for _ in range(150):
        seeds = rng.normal(0, 1, 3)  # each seed has its labelled atmospheres
        text = surface_sentence(0.4 + seeds + rng.normal(0, 0.01, (4, 3, 3)), "CSI")
        said += text.count(", more than chance")
    assert 0.02 < said / 300 < 0.09
    slope = np.array([0, 0.02, 0.04, 0.06])[:, None, None]
    text = surface_sentence(slope + rng.normal(0, 0.01, (4, 3, 3)), "CSI")
    assert "pre-training moves it by 0.058, more than chance" in text
    assert text.count(", more than chance") == 1


def test_a_relation_is_claimed_only_where_it_is_one():
    rng = np.random.default_rng(0)
    assert "smaller" in relation(np.arange(8), -(np.arange(8.0) ** 3), "CSI")
    assert "larger" in relation(np.arange(8), np.arange(8), "CSI")
    found = ["no certain" in relation(rng.random(9), rng.random(9), "CSI") for _ in range(8)]
    assert sum(found) >= 6
    with pytest.raises(DataError, match="at least 4, found 3"):
        relation([1, 2, 3], [1, 2, 3], "CSI")
