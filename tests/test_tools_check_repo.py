"The checks themselves: each must notice what it is there for."

import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import check_repo as check
import clean_notebooks
from book import Lesson

PARAMETERS = 'seed = 0\nfast = False\npreset = "small"\ndata_dir = "d"\nout_dir = "o"'
HEAD = "\n\n".join(check.HEAD)
SOLUTION = "<details><summary>Solution</summary>\n\n```python\n1\n```\n</details>\n"
END = "\n\n".join(check.END) + "\n\n" + 2 * SOLUTION
KNOWN = ["core", "grids.types", "viz", "verify"]


def notebook(root, name, *code, module="", outputs=(), head=HEAD, end=END, parameters=PARAMETERS):
    "Write a small lesson."
    new = nbformat.v4
    nb = new.new_notebook()
    nb.cells = [
        new.new_code_cell(f"#| default_exp {module or name.split('_', 1)[-1]}"),
        new.new_markdown_cell(head),
        new.new_code_cell(parameters, metadata=dict(tags=["parameters"])),
        *map(new.new_code_cell, code),
        new.new_markdown_cell(end),
    ]
    nb.cells[2].outputs = list(outputs) or [new.new_output("stream", text="fine\n")]
    (root / "nbs").mkdir(exist_ok=True)
    nbformat.write(nb, root / "nbs" / f"{name}.ipynb")


@pytest.mark.parametrize(
    "code, found",
    [
        ("from sslpdl_nb.core import a, b", {"core"}),
        ("import sslpdl_nb.verify", {"verify"}),
        ("from sslpdl_nb import viz, verify", {"viz", "verify"}),
        ("from sslpdl_nb.core import (\n    a,\n    b,\n)", {"core"}),
        ("from sslpdl_nb.grids.types import g", {"grids.types"}),
        ("from sslpdl_nb.grids import types", {"grids.types"}),
        ("import sslpdl_nb.grids.types as t", {"grids.types"}),
        ("def f():\n    import sslpdl_nb.viz as v", {"viz"}),
        ("!ls\n%time x = 1\ny = !ls\nimport sslpdl_nb.viz", {"viz"}),
        ("%%bash\nls -l", set()),
        ("import numpy, sslpdl_nb", set()),
    ],
)
def test_every_form_of_import_is_found(code, found):
    assert check.own_imports(code, KNOWN) == found


def test_imports_inside_functions_are_told_apart():
    code = "import sslpdl_nb.core\ndef f():\n    from sslpdl_nb.viz import a"
    assert check.own_imports(code, KNOWN, late=False) == {"core"}
    assert check.own_imports(code, KNOWN, late=True) == {"viz"}


def test_forward_only(tmp_path):
    lessons = [Lesson("01_core", "core", ""), Lesson("03_viz", "viz", "")]
    notebook(tmp_path, "01_core", "x = 1")
    notebook(tmp_path, "03_viz", "from sslpdl_nb.core import x")
    assert check.check_forward(tmp_path, lessons) == []
    lessons.append(Lesson("19_verify", "verify", ""))
    assert "19_verify" in check.check_forward(tmp_path, lessons)[0]
    notebook(tmp_path, "19_verify")
    notebook(tmp_path, "03_viz", "import sslpdl_nb.verify")
    problems = check.check_forward(tmp_path, lessons)
    assert problems == ["03_viz.ipynb imports verify before it exists"]
    notebook(tmp_path, "03_viz", module="maps")
    assert check.check_forward(tmp_path, lessons) == ["03_viz.ipynb must export viz: ['maps']"]


def test_floors_circles_and_wings(tmp_path):
    fine = {"core": set(), "store": {"core"}, "io.grib": {"store"}}
    assert check.check_house(tmp_path, fine) == []
    assert [check.floor_of(fine, m) for m in fine] == [1, 2, 3]
    circle = fine | {"core": {"io.grib"}}
    assert "core -> io.grib -> store -> core" in check.check_house(tmp_path, circle)[0]
    tower = {f"m{k}": {f"m{k - 1}"} if k else set() for k in range(9)}
    assert check.check_house(tmp_path, tower) == ["9 floors of imports, at most 8 expected"]
    many = {f"m{k}": set() for k in range(27)}
    assert "27 rooms" in check.check_house(tmp_path, many)[0]
    wing = fine | {"masking": {"io.grib"}}
    assert "masking belongs to the method" in check.check_house(tmp_path, wing)[0]
    tied = fine | {"verify": {"core", "store"}}
    assert check.check_house(tmp_path, tied) == ["verify needs store; it may need only core"]


def test_light_imports_are_really_tried():
    assert check.check_light(check.ROOT, ["core"]) == []
    assert "matplotlib" in check.check_light(check.ROOT, ["viz"])[0]
    assert "no_such_module" in check.check_light(check.ROOT, ["no_such_module"])[0]


def test_form(tmp_path):
    notebook(tmp_path, "01_core")
    assert check.check_form(tmp_path) == []
    notebook(tmp_path, "03_viz", parameters="seed = 0", end="## Summary")
    problems = "\n".join(check.check_form(tmp_path))
    assert "parameters" in problems and "two exercises" in problems
    assert "Where this is used next" in problems
    notebook(tmp_path, "03_viz", "x = 1\n" * 51, head="**You need** nothing")
    problems = "\n".join(check.check_form(tmp_path))
    assert "a cell of 51 lines" in problems and "You will learn" in problems


def test_outputs(tmp_path):
    new = nbformat.v4.new_output
    notebook(tmp_path, "index")
    notebook(tmp_path, "01_core")
    assert check.check_outputs(tmp_path) == []
    outputs = [
        new("error", ename="ValueError", evalue="bad"),
        new("stream", name="stderr", text="Warning"),
        new("stream", text="x" * 500_000),
    ]
    notebook(tmp_path, "01_core", outputs=outputs)
    first, second, third = check.check_outputs(tmp_path)
    assert "ValueError" in first and "Warning" in second and "kB" in third


def change(path, edit):
    "Edit a notebook and clean it; the numbers of its code cells."
    nb = nbformat.read(path, 4)
    edit(nb)
    nbformat.write(nb, path)
    clean_notebooks.clean(path)
    return [c.execution_count for c in check.code_cells(path)]


def mark_as_run(nb):
    nb.metadata[clean_notebooks.KEY] = clean_notebooks.code_hash(nb)


def test_numbers_stand_only_beside_code_that_was_run(tmp_path, monkeypatch):
    monkeypatch.chdir(check.ROOT)  # the settings of this project
    notebook(tmp_path, "01_core", "x = 1", "", "x")
    path = tmp_path / "nbs" / "01_core.ipynb"
    assert "01_core.ipynb was not run" in check.check_executed(tmp_path)[0]

    def number_by_hand(nb):
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.execution_count = 7

    assert change(path, number_by_hand) == [None] * 5
    assert "was not run" in check.check_executed(tmp_path)[0]
    assert change(path, mark_as_run) == [1, 2, 3, None, 4]
    assert check.check_executed(tmp_path) == []

    def change_text(nb):
        nb.cells[-1].source += "\nmore words"

    assert change(path, change_text) == [1, 2, 3, None, 4]
    assert check.check_executed(tmp_path) == []

    nb = nbformat.read(path, 4)
    nb.cells[3].execution_count = 9  # one cell run again in Jupyter
    nbformat.write(nb, path)
    assert "make export" in check.check_executed(tmp_path)[0]

    def change_code(nb):
        nb.cells[3].source += " + 1"

    assert change(path, change_code) == [None] * 5
    assert "was not run" in check.check_executed(tmp_path)[0]
    assert clean_notebooks.KEY not in nbformat.read(path, 4).metadata


def test_sync_notices_a_module_changed_by_hand(tmp_path):
    for name in ("settings.ini", "setup.py", "_quarto.yml"):
        (tmp_path / name).write_text((check.ROOT / name).read_text())
    (tmp_path / "README.md").write_text("# x")
    (tmp_path / "sslpdl_nb").mkdir()
    (tmp_path / "sslpdl_nb" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    notebook(tmp_path, "01_core", "#| export\nvalue = 1")
    notebook(tmp_path, "index")
    assert any("core.py" in p for p in check.check_sync(tmp_path))  # not exported yet


@pytest.mark.parametrize(
    "code, problem",
    [
        ("x = a if b else c if d else e", "a conditional expression inside another"),
        ("f(y := 1)", "a name bound inside a call"),
        ("f(key=(y := 1))", "a name bound inside a call"),
        ("if (y := f()):\n    x = a if b else c", None),
    ],
)
def test_code_that_is_hard_to_read(code, problem):
    assert check.hard_to_read(code) == ([problem] if problem else [])


def test_paths_of_one_machine_are_found(tmp_path):
    notebook(tmp_path, "index")
    notebook(tmp_path, "01_core", "x = 1")
    assert check.check_readable(tmp_path) == []
    notebook(tmp_path, "01_core", f"x = '{'/ro' + 'ot/'}x.nc'")
    assert "01_core.ipynb: the path" in check.check_readable(tmp_path)[0]


def test_links_that_lead_nowhere(tmp_path):
    notebook(tmp_path, "index")
    notebook(tmp_path, "01_core", end=END + "[core](01_core.ipynb#words) [viz](03_viz.ipynb)")
    assert check.check_links(tmp_path) == [
        "01_core.ipynb points at 03_viz.ipynb, which is not there"
    ]
