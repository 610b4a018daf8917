"The list of the book, and what is made from it."

import json
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import book


def test_lessons_stand_in_order_and_know_their_part():
    stems = [lesson.stem for lesson in book.LESSONS]
    assert stems == sorted(stems) and len(set(stems)) == len(stems)
    number, part = book.part_of("11_labels")
    assert (number, part.title) == (1, "The method")


def test_a_strip_can_be_filled_again_and_again(tmp_path):
    for stem in ("10_store", "11_labels"):  # the first lesson of a part has a longer strip
        path = tmp_path / f"{stem}.ipynb"
        cell = nbformat.v4.new_markdown_cell("# title\n\n<!-- strip -->")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        assert book.fill_strip(path)
        assert not book.fill_strip(path)
        text = "".join(json.loads(path.read_text())["cells"][0]["source"])
        assert text.count("<!-- strip -->") == text.count("*Part 1, The method:*") == 1
        assert f"**{stem[3:]}**" in text and "[decoder](14_decoder.ipynb)" in text


def test_table_and_sidebar_name_every_lesson(tmp_path):
    table = book.table({"11_labels": 8})
    assert "| [11_labels](11_labels.ipynb) |" in table and "| 8 |" in table
    path = tmp_path / "_quarto.yml"
    path.write_text("contents:\n  # book: begin\n  - old.ipynb\n  # book: end\nrest: 1\n")
    book.fill_sidebar(path)
    text = path.read_text()
    assert "old.ipynb" not in text and text.endswith("rest: 1\n")
    for lesson in book.LESSONS:
        assert lesson.stem in table and f"{lesson.stem}.ipynb" in text
