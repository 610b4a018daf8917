"""Write README.md from nbs/index.ipynb, without Quarto.

python tools/make_readme.py             writes README.md
python tools/make_readme.py --check     only says whether it is up to date
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat

FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
LINK = re.compile(r'(\]\(|(?:src|href)=")(?!https?:|#|mailto:|/)([^)\s"]+)')
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp)\b", re.M)
QUIET = re.compile(r"^#\|\s*echo:\s*false\b", re.M)


def from_root(match: re.Match) -> str:
    "A link that works in nbs/ as one that works at the top of the repository."
    return match[1] + os.path.normpath(os.path.join("nbs", match[2])).replace(os.sep, "/")


def relink(markdown: str) -> str:
    "All links of a markdown text, except those inside code, as seen from the top."
    return "".join(
        part if k % 2 else LINK.sub(from_root, part) for k, part in enumerate(FENCE.split(markdown))
    )


def output_text(output) -> str:
    "A code cell's output as markdown; figures belong in nbs/images, not here."
    data = output.get("data", {})
    if "text/markdown" in data:
        return relink(data["text/markdown"])
    text = output.get("text") or data.get("text/plain", "")
    return f"```\n{text.rstrip()}\n```" if text else ""


def cell_text(cell) -> str:
    "A cell as markdown."
    if cell.cell_type != "code":
        return relink(cell.source)
    if HIDDEN.search(cell.source) or "parameters" in cell.metadata.get("tags", []):
        return ""
    code = "\n".join(s for s in cell.source.splitlines() if not s.startswith("#|"))
    shown = (
        [] if QUIET.search(cell.source) or not code.strip() else [f"```python\n{code.strip()}\n```"]
    )
    return "\n\n".join(shown + [t for t in map(output_text, cell.outputs) if t])


def readme(index: Path) -> str:
    "The text of README.md."
    cells = nbformat.read(index, as_version=4).cells
    made = f"made from nbs/{index.name} by tools/make_readme.py"
    head = f"<!-- {made}: edit the notebook, not this file -->\n\n"
    return head + "\n\n".join(t.strip() for t in map(cell_text, cells) if t.strip()) + "\n"


def main(argv: list[str]) -> int:
    root = Path.cwd()
    text, target = readme(root / "nbs" / "index.ipynb"), root / "README.md"
    if "--check" in argv:
        same = target.exists() and target.read_text(encoding="utf-8") == text
        print(
            "README.md is up to date"
            if same
            else "README.md differs from nbs/index.ipynb: run `make export`"
        )
        return 0 if same else 1
    tmp = target.with_name(f".README.{os.getpid()}.tmp")
    tmp.write_text(text, encoding="utf-8")
    os.replace(tmp, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
