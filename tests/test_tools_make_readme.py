"The front page as README.md."

import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from make_readme import readme, relink


def test_links_of_the_readme():
    text = "![map](images/rainmap.png) [core](01_core.ipynb)"
    assert relink(text) == "![map](nbs/images/rainmap.png) [core](nbs/01_core.ipynb)"
    text = '<img src="images/a.png" width=3> [up](../LICENSE#top)'
    assert relink(text) == '<img src="nbs/images/a.png" width=3> [up](LICENSE#top)'
    same = "[web](https://a.b/c.ipynb) [here](#cite)\n\n```sh\n[x](y.png)\n```\n"
    assert relink(same) == same


def test_code_and_output_are_shown_but_not_what_is_hidden(tmp_path):
    new = nbformat.v4
    nb = new.new_notebook()
    shown = new.new_code_cell("#| output: true\n1 + 1")
    shown.outputs = [new.new_output("execute_result", {"text/plain": "2"})]
    quiet = new.new_code_cell("#| echo: false\ntable()")
    table = {"text/markdown": "|a|\n|-|", "text/plain": "..."}
    quiet.outputs = [new.new_output("display_data", table)]
    hidden = new.new_code_cell("#| hide\nsecret")
    nb.cells = [new.new_markdown_cell("# title"), shown, quiet, hidden]
    nbformat.write(nb, tmp_path / "index.ipynb")
    text = readme(tmp_path / "index.ipynb")
    assert text.endswith("# title\n\n```python\n1 + 1\n```\n\n```\n2\n```\n\n|a|\n|-|\n")
