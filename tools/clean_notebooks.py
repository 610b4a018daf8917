"""Clean notebooks as nbdev_clean does, but let execution counts stand where they are the truth.

    python tools/clean_notebooks.py [NOTEBOOK ...]      default: all in nbs/ of the current folder

`run_notebooks.py --in-place` leaves a hash of the code that it ran in the notebook. While code and
hash agree, the outputs belong to the code and cells are numbered 1, 2, 3 ... as they were run;
after any change of code no cell has a number.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

KEY = "executed_code"  # of the notebook's metadata
SLIDES = "slideshow"  # of a cell's metadata: which slide it belongs to


def code_hash(notebook: dict) -> str:
    "A hash of all code cells in order; formatting of the file and text cells do not count."
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def number(notebook: dict):
    "Number the code cells if the notebook was run as it stands, else take all numbers away."
    fresh = notebook["metadata"].get(KEY) == code_hash(notebook)
    if not fresh:
        notebook["metadata"].pop(KEY, None)
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += bool("".join(cell["source"]).strip())
            cell["execution_count"] = count if fresh and "".join(cell["source"]).strip() else None
            for output in cell["outputs"]:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = cell["execution_count"]


def clean(path: Path):
    "Clean a notebook by the rules of settings.ini and number its cells."
    from execnb.nbio import write_nb
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    config, notebook = get_config(), json.loads(path.read_text(encoding="utf-8"))
    clean_nb(
        notebook,
        config.clear_all,
        [*config.allowed_metadata_keys.split(), KEY],
        [*config.allowed_cell_metadata_keys.split(), SLIDES],
        config.clean_ids,
    )
    number(notebook)
    write_nb(notebook, path)


def main(names: list[str]) -> int:
    for path in map(Path, names or sorted(Path("nbs").glob("*.ipynb"))):
        clean(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
