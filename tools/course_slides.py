"""Slides of lessons: a talk of about twenty minutes from the cells that are marked for it.

python tools/course_slides.py                       # all lessons with marked cells, runs/slides/
python tools/course_slides.py --reveal FILE 11_labels

A cell is on a slide if its metadata say so, in the form that Jupyter uses:
`"slideshow": {"slide_type": "slide"}` begins a slide, `"-"` belongs to the slide before. All other
cells are left out. A slide shows the heading, the first sentences, formulas, lists and tables of a
text; the whole text stands in the speaker's notes (key S). Figures come without their code.

The pages ask nothing of the network. reveal.js, which shows them, is not part of this repository:
`npm pack reveal.js@5.2.1` downloads it, and `--reveal reveal.js-5.2.1.tgz` puts it beside the
slides, once. Formulas are set by the KaTeX of the site (tools/site/static/katex).
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import nbformat

from sslpdl_nb.core import atomic_path

ROOT = Path(__file__).resolve().parent.parent
KATEX = ROOT / "tools" / "site" / "static" / "katex"
TEMPLATES = ROOT / "tools"  # the template is the folder talk
NEEDED = ("dist/reveal.js", "dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js")
HOW = "`npm pack reveal.js@5.2.1` downloads it; then give its file once with --reveal FILE"

MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.S)
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)
SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-Z*`$(\"])")
CUT = re.compile(r"\*\*You need\*\*|\*\*Where this is used next|### Exercises|<!-- strip")
LONGEST = 280  # characters of a text on a slide
LONGEST_SUMMARY = 700


class SlidesError(Exception):
    "There can be no slides; the text says why."


# ------------------------------------------------------------------ text


def first_sentences(paragraph: str, longest: int) -> str:
    "As many whole sentences as fit, at least one."
    sentences = SENTENCE.split(paragraph)
    text = sentences[0]
    for sentence in sentences[1:]:
        if len(text) + len(sentence) > longest:
            break
        text = f"{text} {sentence}"
    return text


def shorten(text: str) -> str:
    "What a slide shows of a text: headings, formulas, lists, tables, and the first sentences."
    text = CUT.split(text, maxsplit=1)[0]
    longest = LONGEST_SUMMARY if text.startswith("## Summary") else LONGEST
    kept, sentences = [], False
    bullets = "**You will learn**" in text
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith(("#", ">", "|", "- ", "1. ")) or "$$" in block:
            kept.append(block)
        elif bullets or not sentences:
            sentences = True
            if not bullets or block.startswith("**You will learn**"):
                kept.append(first_sentences(block, longest))
    return "\n\n".join(kept)


def set_formulas(text: str) -> str:
    "Formulas as elements that KaTeX fills, out of the reach of markdown."

    def element(match):
        tex = html.escape((match[1] or match[2]).strip().replace("\n", " "), quote=True)
        display = "yes" if match[1] else "no"
        return f'<span data-tex="{tex}" data-display="{display}"></span>'

    parts = CODE.split(text)
    parts[::2] = [MATH.sub(element, part) for part in parts[::2]]
    return "".join(parts)


def unlink(text: str) -> str:
    "Links without their targets: a slide leads nowhere else."
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


# ------------------------------------------------------------------ slides of a lesson


def slide_type(cell) -> str:
    "slide, - or skip."
    return cell.metadata.get("slideshow", {}).get("slide_type", "skip")


def without_directives(source: str) -> str:
    "Code without nbdev's lines."
    return re.sub(r"^#\|.*\n", "", source, flags=re.M)


def has_figure(cell) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def talk(notebook):
    "A notebook that consists of slides, with the whole texts as notes."
    slides = nbformat.v4.new_notebook(metadata=notebook.metadata)
    for cell in notebook.cells:
        kind = slide_type(cell)
        if kind == "skip":
            continue
        marked = dict(slideshow=dict(slide_type=kind))
        if cell.cell_type == "code":
            source = "" if has_figure(cell) else without_directives(cell.source)
            new = nbformat.v4.new_code_cell(source, outputs=cell.outputs, metadata=marked)
            if not source:
                new.metadata["tags"] = ["only-output"]
            slides.cells.append(new)
            continue
        shown = set_formulas(unlink(shorten(cell.source)))
        slides.cells.append(nbformat.v4.new_markdown_cell(shown, metadata=marked))
        notes = set_formulas(unlink(CUT.split(cell.source, maxsplit=1)[0]))
        as_notes = dict(slideshow=dict(slide_type="notes"))
        slides.cells.append(nbformat.v4.new_markdown_cell(notes, metadata=as_notes))
    return slides


def page(path: Path) -> str:  # HTML
    "The slides of one lesson."
    from nbconvert import SlidesExporter
    from nbconvert.preprocessors import TagRemovePreprocessor

    exporter = SlidesExporter(
        extra_template_basedirs=[str(TEMPLATES)],
        template_name="talk",
        reveal_url_prefix="reveal.js",
        reveal_number="c/t",
        reveal_transition="none",
        reveal_width="1100",
        reveal_height="700",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    exporter.register_preprocessor(
        TagRemovePreprocessor(remove_input_tags={"only-output"}, enabled=True), enabled=True
    )
    notebook = talk(nbformat.read(path, as_version=4))
    resources = dict(metadata=dict(name=path.stem))
    return exporter.from_notebook_node(notebook, resources)[0]


def marked_lessons(nbs: Path) -> list[Path]:
    "Lessons with cells that are marked for slides."
    found = []
    for path in sorted(nbs.glob("[0-9]*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        if any(slide_type(cell) != "skip" for cell in cells):
            found.append(path)
    return found


# ------------------------------------------------------------------ what the pages need


def copy_reveal(source: Path, target: Path):
    "The files of reveal.js that slides need, from an unpacked package or its archive."
    if not source.exists():
        raise SlidesError(f"no file or folder {source}")
    with tempfile.TemporaryDirectory() as folder:
        if source.is_file():
            try:
                with tarfile.open(source) as archive:
                    archive.extractall(folder, filter="data")
            except tarfile.TarError as error:
                raise SlidesError(f"{source} is no archive of npm: {error}") from None
            source = Path(folder) / "package"
        missing = [name for name in NEEDED if not (source / name).is_file()]
        if missing:
            raise SlidesError(f"{source.name} holds no reveal.js: {missing[0]} is missing. {HOW}")
        for part in ("dist", "plugin/notes"):
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        if (source / "LICENSE").is_file():
            shutil.copy(source / "LICENSE", target / "LICENSE")


def prepare(out: Path, reveal: Path | None):
    "Put reveal.js and KaTeX beside the pages."
    out.mkdir(parents=True, exist_ok=True)
    if reveal is not None:
        copy_reveal(reveal, out / "reveal.js")
    if not all((out / "reveal.js" / name).is_file() for name in NEEDED):
        raise SlidesError(f"no reveal.js in {out}. {HOW}")
    if KATEX.is_dir():
        shutil.copytree(KATEX, out / "katex", dirs_exist_ok=True)
    else:
        print(f"   note: no KaTeX in {KATEX}; formulas will be missing", file=sys.stderr)


# ------------------------------------------------------------------ the command


def run(names: list[str], out: Path, reveal: Path | None, nbs: Path) -> list[Path]:
    "Write the slides; paths of the pages."
    lessons = marked_lessons(nbs)
    unknown = sorted(set(names) - {path.stem for path in lessons})
    if unknown:
        raise SlidesError(f"no cells are marked for slides in {', '.join(unknown)}")
    prepare(out, reveal)
    pages = []
    for path in lessons:
        if names and path.stem not in names:
            continue
        pages.append(out / f"{path.stem}.html")
        with atomic_path(pages[-1]) as tmp:
            tmp.write_text(page(path), encoding="utf-8")
    return pages


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="lessons, for example 11_labels; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "slides")
    parser.add_argument("--reveal", type=Path, help="the package reveal.js, as npm packs it")
    args = parser.parse_args(argv)
    try:
        for path in run(args.names, args.out, args.reveal, ROOT / "nbs"):
            print(os.path.relpath(path))
    except SlidesError as error:
        print(f"slides: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
