"Cells: options of methods, the same weather for all, and hashes of code."

import functools

import numpy as np
import pytest
import torch
from study_files import write_store

from sslpdl_nb.baselines.networks import Network
from sslpdl_nb.baselines.registry import BASELINES
from sslpdl_nb.core import VARIABLE_NAMES, DataError, get_config
from sslpdl_nb.experiments import cells
from sslpdl_nb.experiments.cells import (
    LeanDataset,
    code_hash,
    code_of,
    config_of,
    identity,
    key_of,
    load_cell,
    make_baseline,
    module_hashes,
    nested_subset,
    options_of,
    takes_init,
)
from sslpdl_nb.store import RainDataset, load_splits

CELL = dict(method="raw", archive="toy", seed=0, image_size=[32, 32])


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    "Two archives of the same size and one of another."
    folder = tmp_path_factory.mktemp("archives")
    sizes = dict(toy=(0, (32, 32)), other=(1, (32, 32)), small=(0, (16, 16)))
    return {n: write_store(folder / f"{n}.nc", s, size) for n, (s, size) in sizes.items()}


@pytest.fixture(scope="module")
def splits(archives):
    return load_splits(archives["toy"], get_config(image_size=(32, 32)))


def times(samples) -> list:
    return samples["reference_time"].values.tolist()


# ------------------------------------------------------------------ options


def test_options_of_a_method_are_the_arguments_of_its_class():
    assert {"steps", "lr", "loss", "residual", "tune"} <= set(options_of("unet"))
    assert not {"build", "config", "state", "init", "name"} & set(options_of("unet"))
    assert takes_init("internimage") and not takes_init("raw")


@pytest.mark.parametrize("method", BASELINES)
def test_every_option_of_every_method_can_be_set(method):
    before = make_baseline(dict(method=method))
    for option in options_of(method):
        value = getattr(before, option)
        assert getattr(make_baseline({"method": method, option: value}), option) == value


def test_options_and_fields_of_the_configuration_reach_the_baseline():
    cell = dict(method="unet", steps=7, loss="one_hot", finetune_batch=3, edges=[0.1, 10.0])
    network = make_baseline(cell, state="x.state", progress=False)
    assert isinstance(network, Network)
    assert (network.steps, network.loss, network.state) == (7, "one_hot", "x.state")
    assert network.config.finetune_batch == 3 and network.config.edges == (0.1, 10.0)
    assert make_baseline(dict(method="unet")).steps is None


@pytest.mark.parametrize("method", ["oracle", "no_such_module:X", "json:Oracle", 3])
def test_an_unknown_method_is_named(method):
    with pytest.raises(DataError, match=str(method)):
        make_baseline(dict(method=method))


def test_a_field_of_another_type_is_refused():
    with pytest.raises(DataError, match="finetune_batch"):
        config_of(dict(finetune_batch="many"))


# ------------------------------------------------------------------ weather


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_fewer_atmospheres_are_among_more_and_whole(splits, seed):
    samples = splits.train.samples
    chosen = [set(times(nested_subset(samples, n, seed))) for n in (1, 3, 9, 18)]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3] == set(times(samples))
    assert [len(c) for c in chosen] == [4, 12, 36, 72]
    assert times(nested_subset(samples, None, seed)) == times(samples)


def test_the_choice_depends_on_the_seed_and_on_nothing_else(archives):
    def train(**changes):
        return times(load_cell(CELL | dict(atmospheres=3) | changes, archives).train.samples)

    assert train() == train(method="unet", steps=3, alpha=0.1)
    assert train() != train(seed=1)


@pytest.mark.parametrize("n", [0, 19, -1])
def test_too_many_or_too_few_atmospheres(splits, n):
    with pytest.raises(DataError, match=f"1 to 18, found {n}"):
        nested_subset(splits.train.samples, n, 0)


def test_a_lean_dataset_is_a_rain_dataset(splits):
    whole = splits.valid
    lean = LeanDataset(whole.samples, whole.standardizer)
    assert torch.equal(lean.inputs(), whole.inputs()) and len(lean) == len(whole)
    assert torch.equal(lean.observed_rain(), whole.observed_rain())
    for name, value in whole[5].items():
        same = torch.equal if isinstance(value, torch.Tensor) else (lambda a, b: a == b)
        assert same(lean[5][name], value)
    assert lean.samples["forecast"].values is lean.samples["forecast"].values  # no copies
    assert isinstance(lean, RainDataset)


def test_all_forecasts_decide_about_the_standardizer(archives, splits):
    few = load_cell(CELL | dict(atmospheres=1), archives)
    assert np.allclose(few.standardizer.mean, splits.standardizer.mean, rtol=1e-5, atol=1e-6)


def test_lead_times_and_missing_variables(archives):
    cell = CELL | dict(leads=[24.0], test_leads=[30.0], hide=["rain", "rh850"])
    data = load_cell(cell, archives)
    assert set(data.train.lead_time) == set(data.valid.lead_time) == {24.0}
    assert set(data.test.lead_time) == {30.0}
    hidden = [VARIABLE_NAMES.index(name) for name in ("rain", "rh850")]
    for part in (data.train, data.valid, data.test):
        missing = np.isnan(part.samples["forecast"].values).all((0, 2, 3))
        assert np.flatnonzero(missing).tolist() == sorted(hidden)
        assert not part.inputs()[:, hidden].any()
    again = load_cell(CELL, archives)  # what is kept in memory was not changed
    assert np.isfinite(again.test.samples["forecast"].values).all()
    assert len(again.test) == 24


def test_another_archive_to_test_on(archives):
    data = load_cell(CELL | dict(test_archive="other"), archives)
    own, other = (load_cell(CELL | dict(archive=a), archives) for a in ("toy", "other"))
    assert data.standardizer == own.standardizer != other.standardizer
    for part, source in (("train", own), ("valid", own), ("test", other)):
        found, expected = (d.samples[part]["forecast"].values for d in (data, source))
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(leads=[25.0]), "some of .24.0, 30.0., found .25.0."),
        (dict(test_leads=24), "lead times"),
        (dict(hide=["snow"]), "snow"),
        (dict(atmospheres=40), "1 to 18, found 40"),
        (dict(image_size=[16, 16]), "rows and columns.*16, 16.*32, 32"),
        (dict(test_archive="small"), "small.nc: rows and columns"),
    ],
)
def test_what_an_archive_does_not_have(archives, changes, words):
    with pytest.raises(DataError, match=words):
        load_cell(CELL | changes, archives)


def test_what_can_be_known_before_a_run_is_refused_before_it(archives):
    for changes in (dict(atmospheres=40), dict(image_size=[16, 16]), dict(test_archive="small")):
        with pytest.raises(DataError, match="expected .*found"):
            identity(CELL | changes, archives)


# ------------------------------------------------------------------ code


def test_comments_docstrings_and_lists_of_names_do_not_count():
    plain = "def f(x):\n    return x + 1\n"
    told = (
        '"About."\n__all__ = ["f"]\n\n\ndef f(x):  # a number\n    "One more."\n    return x + 1\n'
    )
    assert code_hash(plain) == code_hash(told)
    assert code_hash(plain) != code_hash(plain.replace("1", "2"))
    assert code_hash("def f():\n    'Nothing.'\n") == code_hash("def f():\n    'Other.'\n")


def test_imports_are_followed_wherever_they_stand(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def f():\n    from sslpdl_nb.verify import csi\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(module_hashes(("mine",))) == {"mine", "verify", "core"}


def test_a_cell_depends_on_its_own_modules_only():
    raw, unet = (code_of(CELL | dict(method=m)) for m in ("raw", "unet"))
    assert {"core", "store", "experiments.scores", "baselines.neighbourhood"} <= set(raw["modules"])
    assert {"train", "finetune", "baselines.networks"} <= set(unet["modules"])
    assert not {"train", "finetune", "pretrain"} & set(raw["modules"])
    for code in (raw, unet):
        assert not {"cli", "viz", "baselines.registry", "experiments.runner"} & set(code["modules"])
    more = code_of(CELL | dict(method="internimage", pretrain=dict(pretrain_steps=1)))
    assert "pretrain" in more["modules"]
    other = dict(function="sslpdl_nb.experiments.pretexts:places")
    other = code_of(CELL | dict(method="internimage", pretrain=other))
    assert {"pretrain", "experiments.pretexts"} <= set(other["modules"])


def test_options_of_the_registry_and_functions_count():
    cell = CELL | dict(method="unet")
    assert code_of(cell)["hash"] == code_of(dict(cell))["hash"]
    assert code_of(cell)["hash"] != code_of(cell | dict(loss="one_hot"))["hash"]
    assert code_of(cell)["hash"] != code_of(cell, (code_hash,))["hash"]


def test_a_network_that_a_function_of_the_registry_builds_is_followed():
    def build(config):
        return UNet(config)  # noqa: F821

    build.__module__ = "sslpdl_nb.baselines.registry"
    from sslpdl_nb import finetune

    namespace = functools.partial(build)
    build.__globals__["UNet"] = finetune.UNet
    assert cells._modules_behind(namespace) == ["sslpdl_nb.finetune"]


def test_keys_do_not_depend_on_the_order():
    assert key_of(dict(a=1, b=[2])) == key_of(dict(b=[2], a=1)) != key_of(dict(a=1, b=[3]))


def test_another_archive_is_another_cell(archives, tmp_path):
    names = [identity(CELL, {"toy": archives[n]})["name"] for n in ("toy", "other")]
    assert names[0].split("-")[0] != names[1].split("-")[0]
    assert names[0].split("-")[1] == names[1].split("-")[1]
    shorter = write_store(tmp_path / "toy.nc", 0, (32, 32), 15)
    assert identity(CELL, {"toy": shorter})["name"] not in names
