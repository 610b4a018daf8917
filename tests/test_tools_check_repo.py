"The checks themselves: each must notice what it is there for."
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import check_repo as check
import clean_notebooks
from make_readme import readme, relink

PARAMETERS = 'seed = 0\nfast = False\npreset = "small"\ndata_dir = "d"\nout_dir = "o"'
EXERCISES = "### Exercises\n" + "<details><summary>Solution</summary>\n\n```python\n1\n```\n</details>\n" * 2


def notebook(root, name, *code, outputs=(), exercises=EXERCISES, parameters=PARAMETERS):
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_code_cell(f"#| default_exp {name.split('_', 1)[-1]}"),
                nbformat.v4.new_code_cell(parameters, metadata=dict(tags=["parameters"])), *map(nbformat.v4.new_code_cell, code),
                nbformat.v4.new_markdown_cell(exercises)]
    nb.cells[1].outputs = list(outputs) or [nbformat.v4.new_output("stream", text="fine\n")]
    (root / "nbs").mkdir(exist_ok=True)
    nbformat.write(nb, root / "nbs" / f"{name}.ipynb")


@pytest.mark.parametrize("code, found", [
    ("from sslpdl_nb.core import a, b", {"core"}), ("import sslpdl_nb.encoder", {"encoder"}), ("from sslpdl_nb import viz, grid", {"viz", "grid"}),
    ("from sslpdl_nb.core import (\n    a,\n    b,\n)", {"core"}), ("def f():\n    import sslpdl_nb.viz as v", {"viz"}),
    ("!ls\n%time x = 1\ny = !ls\nimport sslpdl_nb.data", {"data"}), ("%%bash\nls -l", set()), ("import numpy, sslpdl_nb", set())])
def test_every_form_of_import_is_seen(code, found):
    assert check.own_imports(code) == found


def test_forward_only(tmp_path):
    notebook(tmp_path, "00_core", "x = 1")
    notebook(tmp_path, "01_viz", "from sslpdl_nb.core import x")
    assert check.check_forward(tmp_path) == []
    notebook(tmp_path, "01_viz", "import sslpdl_nb.verify")
    notebook(tmp_path, "02_verify", "#| exporti\nfrom sslpdl_nb.viz import y", "from sslpdl_nb.viz import y")
    assert check.check_forward(tmp_path) == ["01_viz.ipynb imports verify before it exists", "02_verify.ipynb exports code that needs viz; it may need only core"]


def test_light_imports_are_really_tried():
    assert check.check_light(check.ROOT, ["core"]) == []
    assert "matplotlib" in check.check_light(check.ROOT, ["viz"])[0]
    assert "no_such_module" in check.check_light(check.ROOT, ["no_such_module"])[0]


def test_form(tmp_path):
    notebook(tmp_path, "00_core")
    assert check.check_form(tmp_path) == []
    notebook(tmp_path, "01_viz", parameters="seed = 0", exercises="none")
    problems = check.check_form(tmp_path)
    assert len(problems) == 2 and "parameters" in problems[0] and "exercises" in problems[1]


def test_outputs(tmp_path):
    new = nbformat.v4.new_output
    notebook(tmp_path, "index")
    notebook(tmp_path, "00_core")
    assert check.check_outputs(tmp_path) == []
    notebook(tmp_path, "00_core", outputs=[new("error", ename="ValueError", evalue="bad"), new("stream", name="stderr", text="Warning"),
                                           new("stream", text="x" * 500_000)])
    problems = check.check_outputs(tmp_path)
    assert ["ValueError" in problems[0], "Warning" in problems[1], "kB" in problems[2]] == [True] * 3


def test_executed_and_cleaning(tmp_path, monkeypatch):
    "Numbers stand only beside code that was run as it is; text may change, code may not."
    monkeypatch.chdir(check.ROOT)                                              # the settings of this project
    notebook(tmp_path, "00_core", "x = 1", "", "x")
    path = tmp_path / "nbs" / "00_core.ipynb"
    def change(f):
        nb = nbformat.read(path, 4)
        f(nb)
        nbformat.write(nb, path)
        clean_notebooks.clean(path)
        return [c.execution_count for c in check.code_cells(path)], check.check_executed(tmp_path)
    assert "00_core.ipynb was not run" in check.check_executed(tmp_path)[0]    # made by hand
    counts, problems = change(lambda nb: [c.update(execution_count=7) for c in nb.cells if c.cell_type == "code"])
    assert counts == [None] * 5 and "was not run" in problems[0]               # numbered by hand
    run = lambda nb: nb.metadata.update({clean_notebooks.KEY: clean_notebooks.code_hash(nb)})
    assert change(run) == ([1, 2, 3, None, 4], [])
    def text(nb): nb.cells[-1].source += "\nmore words"
    assert change(text) == ([1, 2, 3, None, 4], [])
    clean_notebooks.clean(path)
    nb = nbformat.read(path, 4)
    nb.cells[2].execution_count = 9                                            # one cell run again in Jupyter
    nbformat.write(nb, path)
    assert "make export" in check.check_executed(tmp_path)[0]
    def code(nb): nb.cells[2].source += " + 1"
    counts, problems = change(code)
    assert counts == [None] * 5 and "was not run" in problems[0] and clean_notebooks.KEY not in nbformat.read(path, 4).metadata


def test_sync_notices_a_module_changed_by_hand(tmp_path):
    for name in ("settings.ini", "setup.py"):
        (tmp_path / name).write_text((check.ROOT / name).read_text())
    (tmp_path / "README.md").write_text("# x")
    (tmp_path / "sslpdl_nb").mkdir()
    (tmp_path / "sslpdl_nb" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    notebook(tmp_path, "00_core", "#| export\nvalue = 1")
    assert any("core.py" in p for p in check.check_sync(tmp_path))             # not exported yet


def test_links_of_the_readme():
    assert relink("![map](images/rainmap.png) [core](00_core.ipynb)") == "![map](nbs/images/rainmap.png) [core](nbs/00_core.ipynb)"
    assert relink('<img src="images/a.png" width=3> [up](../LICENSE#top)') == '<img src="nbs/images/a.png" width=3> [up](LICENSE#top)'
    same = "[web](https://a.b/c.ipynb) [here](#cite)\n\n```sh\n[x](y.png)\n```\n"
    assert relink(same) == same


def test_readme_shows_code_and_output_but_not_what_is_hidden(tmp_path):
    nb = nbformat.v4.new_notebook()
    shown, quiet, hidden = nbformat.v4.new_code_cell("#| output: true\n1 + 1"), nbformat.v4.new_code_cell("#| echo: false\ntable()"), nbformat.v4.new_code_cell("#| hide\nsecret")
    shown.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"})]
    quiet.outputs = [nbformat.v4.new_output("display_data", {"text/markdown": "|a|\n|-|", "text/plain": "..."})]
    nb.cells = [nbformat.v4.new_markdown_cell("# title"), shown, quiet, hidden]
    nbformat.write(nb, tmp_path / "index.ipynb")
    text = readme(tmp_path / "index.ipynb")
    assert text.endswith("# title\n\n```python\n1 + 1\n```\n\n```\n2\n```\n\n|a|\n|-|\n")
