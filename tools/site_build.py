"""Build the site: lessons with their stored outputs, and the reference. Nothing is run.

python tools/site_build.py            writes runs/site
python tools/site_build.py FOLDER     writes another folder

The sources are put together in a folder beside the site (runs/site_work): copies of the notebooks
and images, one page for each part, one on how to run the lessons, and the reference. Sphinx makes
the pages there; a site that was made without a warning takes the place of the old one.
"""

from __future__ import annotations

import json
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

sys.path.insert(0, str(Path(__file__).parent))
from book import BOOK
from site_api import index_page, module_page, read_package
from site_lessons import places

ROOT = Path(__file__).resolve().parent.parent

RUN_PAGE = """\
# Run the lessons

Every lesson is a notebook. The pages here show what it printed and drew when it was last run; the
rocket at the top of a page opens the notebook itself.

## JupyterLab

On your own computer, the best way to work. Python {python} or newer, `git` and `make` are needed:

```sh
git clone {url}
cd {repo}
make install        # everything into the folder .venv
make lab            # JupyterLab on the lessons
```

`make reproduce` runs every lesson on the bundled sample.

## Binder

JupyterLab in the browser, with nothing to install. The first start of a new version takes several
minutes, and a session has little memory and no GPU: lessons that train a network run, but slowly.

## Colab

Colab opens a notebook alone, without the package and the bundled sample. Put these lines into a new
cell at the top, and run it first:

```
!git clone --depth 1 {url}
%cd {repo}/nbs
%pip install -q ..
```
"""


def slug(title: str) -> str:
    "The anchor of a heading, as JupyterLab makes it."
    return title.strip().replace(" ", "-")


def write(path: Path, text: str):
    "Write a source; one that stays as it is keeps its date, and Sphinx does not read it again."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def part_page(number: int) -> str:
    "The page of one part of the book: its lessons in a table, and below it in the sidebar."
    part = BOOK[number]
    lines = [f"# Part {number}. {part.title}", "", part.about, ""]
    lines += ["| lesson | what you learn | module |", "|---|---|---|"]
    for lesson in part.lessons:
        module = f"[{lesson.module}](api/{lesson.module}.md)" if lesson.module else ""
        link = f"[{lesson.stem.replace('_', ' ', 1)}]({lesson.stem}.ipynb)"
        lines.append(f"| {link} | {lesson.about} | {module} |")
    lines += ["", "```{toctree}", ":hidden:", ""]
    names = {lesson.stem: lesson.stem.replace("_", " ", 1) for lesson in part.lessons}
    lines += [f"{name} <{stem}>" for stem, name in names.items()]
    return "\n".join([*lines, "```", ""])


def write_reference(root: Path, source: Path):
    "One page for each module, and one that lists them."
    parts = {part.title: [one for one in part.lessons if one.module] for part in BOOK}
    lessons = [lesson for some in parts.values() for lesson in some]
    package = read_package(root, [lesson.module for lesson in lessons])
    for lesson in lessons:
        path = root / "nbs" / f"{lesson.stem}.ipynb"
        notebook = json.loads(path.read_text(encoding="utf-8"))
        found = places(notebook, lesson.stem, lesson.module)
        link = f"[{lesson.stem.replace('_', ' ', 1)}](../{lesson.stem}.ipynb), {lesson.about}"
        page = module_page(lesson.module, *package[lesson.module], found, link)
        write(source / "api" / f"{lesson.module}.md", page)
    titles = [(title, [one.module for one in some]) for title, some in parts.items() if some]
    write(source / "api" / "index.md", index_page(package, titles))


def write_sources(root: Path, source: Path):
    "Everything that Sphinx reads."
    ini = ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    cfg = ini["DEFAULT"]
    for name in ("index", *(lesson.stem for part in BOOK for lesson in part.lessons)):
        notebook = f"{name}.ipynb"
        write(source / notebook, (root / "nbs" / notebook).read_text(encoding="utf-8"))
    for image in (root / "nbs" / "images").glob("*.png"):
        (source / "images").mkdir(exist_ok=True)
        shutil.copy2(image, source / "images")
    for number, part in enumerate(BOOK):
        if part.lessons:
            write(source / f"part{number}.md", part_page(number))
    run = RUN_PAGE.format(python=cfg["min_python"], url=cfg["git_url"], repo=cfg["repo"])
    write(source / "run.md", run)
    write_reference(root, source)


def build(out: Path, root: Path = ROOT) -> int:  # 0 if Sphinx had nothing to complain about
    "Build the site into a folder."
    work = out.with_name(out.name + "_work")
    source, html = work / "source", work / "html"
    write_sources(root, source)
    options = ["--quiet", "--fail-on-warning", "--jobs", "auto"]
    folders = ["-c", root / "tools" / "site", "-d", work / "doctrees", source, html]
    failed = sphinx_build([*options, *map(str, folders)])
    if not failed:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(html, out)
    return failed


def main(argv: list[str]) -> int:
    out = Path(argv[0]) if argv else ROOT / "runs" / "site"
    failed = build(out.resolve())
    if not failed:
        print(f"{len(list(out.rglob('*.html')))} pages in {out}; open {out / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
