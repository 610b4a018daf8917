"The entry points of the package: lazy, and callable in whatever order modules are imported."

import subprocess
import sys

import pytest

import sslpdl_nb


def run(code):
    "What a fresh Python prints."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_of_the_package_loads_nothing_else():
    code = (
        "import sslpdl_nb, sys; print([m for m in ('torch', 'numpy', 'timm') if m in sys.modules])"
    )
    assert run(code) == "[]"


@pytest.mark.parametrize("first", ["", "import sslpdl_nb.train", "from sslpdl_nb.train import fit"])
def test_functions_are_callable_in_any_order(first):
    for name in ("pretrain", "finetune"):
        module_first = first.replace("train", name).replace("fit", name)
        code = f"{module_first}\nfrom sslpdl_nb import {name}\nprint(callable({name}))"
        assert run(code) == "True"


def test_a_module_stays_a_module():
    from sslpdl_nb import pretrain
    from sslpdl_nb.pretrain import Pretrain

    assert pretrain.Pretrain is Pretrain
    with pytest.raises(TypeError, match=r"pretrain\(\) missing"):
        pretrain()


def test_all_entry_points_are_there():
    assert {"VARIABLES", "Config", "load_splits", "pretrain", "finetune", "predict"} <= set(
        sslpdl_nb.__all__
    )
    for name in ("VARIABLES", "Config", "get_config", "load_splits", "from_pretrained"):
        assert getattr(sslpdl_nb, name) is not None
    assert set(sslpdl_nb.__all__) <= set(dir(sslpdl_nb))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sslpdl_nb.nothing
