"All rivals by name: each is made, keeps to the protocol, and is known to figures and studies."

from pathlib import Path

import pytest
import torch

from sslpdl_nb.baselines.networks import Network
from sslpdl_nb.baselines.registry import BASELINES, get_baseline, overview
from sslpdl_nb.core import DataError, get_config
from sslpdl_nb.experiments.figures import method_style

CONFIG = get_config("small")
STUDIES = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("name", BASELINES)
def test_every_rival_is_fresh_and_has_the_two_functions(name):
    one, other = get_baseline(name, CONFIG), get_baseline(name, CONFIG)
    assert one is not other
    assert callable(one.fit) and callable(one.predict)
    assert BASELINES[name].family in ("forecast", "statistics", "network", "ours")


@pytest.mark.parametrize("name", BASELINES)
def test_every_rival_has_a_style_of_its_own(name):
    assert method_style(name)["label"]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="internimage_share"):
        get_baseline("magic", CONFIG)


def test_networks_take_the_edges_of_the_configuration():
    config = get_config("small", edges=(0.1, 1.0, 10.0), class_weights=(1.0, 2.0, 5.0, 10.0))
    for name in ("unet", "internimage", "segformer"):
        net = get_baseline(name, config).build(config).eval()
        with torch.no_grad():
            assert net(torch.zeros(1, 16, 64, 32)).shape == (1, 4, 64, 32)


def test_overview_counts_the_parameters_of_networks_only():
    rows = {row["name"]: row for row in overview(CONFIG)}
    assert list(rows) == list(BASELINES)
    for name, row in rows.items():
        network = isinstance(get_baseline(name, CONFIG), Network)
        assert (row["parameters"] is not None) == network


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_the_studies_can_be_read(path):
    from sslpdl_nb.experiments.runner import Study

    cells = Study.load(path).cells()
    assert len(cells) == len({str(c) for c in cells}) > 0
    assert 0 < len(Study.load(path, fast=True).cells()) <= 3
