"""Write the modules, the strips of the notebooks, the sidebar and README.md.

python tools/export.py                    everything
python tools/export.py nbs/20_decide.ipynb   the modules of these notebooks only
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import book
import clean_notebooks
import make_readme

PACKAGE = "sslpdl_nb"


def export_modules(
    notebooks: list,  # paths; empty = all, and the index of all names
    root: Path,  # of the repository
):
    "Let nbdev write modules, then format them as the notebooks are formatted."
    if notebooks:
        from nbdev.export import nb_export

        for path in notebooks:
            nb_export(Path(path).resolve())
    else:
        command = [str(Path(sys.executable).with_name("nbdev_export"))]
        subprocess.run(command, cwd=root, check=True)
    # The settings of ruff.toml leave out _modidx.py, which nbdev writes.
    command = [sys.executable, "-m", "ruff", "format", "--quiet", PACKAGE]
    subprocess.run(command, cwd=root, check=True)


def main(notebooks: list[str]) -> int:
    root = Path.cwd()
    export_modules(notebooks, root)
    if notebooks:
        return clean_notebooks.main(notebooks)
    book.main(root)
    clean_notebooks.main([])
    return make_readme.main([])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
