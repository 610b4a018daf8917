"The site: what its pages are made from, the built pages, and how a browser shows them."

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("myst_nb")  # all in the extra [site]
pytest.importorskip("sphinx_book_theme")
pytest.importorskip("lxml")
pytest.importorskip("playwright")

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from book import BOOK, LESSONS
from docutils import nodes
from lxml import html
from site_api import directive, plain, public_names, read_module
from site_check import (
    browser_tab,
    check_files,
    check_in_browser,
    find_chromium,
    listen,
    read_page,
    read_site,
    served,
)
from site_lessons import describe_images, label, places, prepare

ROOT = Path(__file__).parent.parent
OUTSIDE = "https://example.org/blob/main/"
MODULES = [lesson.module for lesson in LESSONS if lesson.module]
in_browser = pytest.mark.skipif(not find_chromium(), reason="no Chromium on this computer")


# ------------------------------------------------------------------ what pages are made from

SMALL = '''
"A small module."
from dataclasses import dataclass
from sslpdl_nb.core import Config

__all__ = ["EDGES", "Cloud", "Storm", "mean_rain"]

EDGES = (0.1, 10.0)  # mm/h


class Storm(Exception):
    "Too much rain."


@dataclass
class Cloud:
    "A cloud."

    base: float = 1.0  # km
    kind: str = "cumulus"

    @property
    def top(self) -> float:  # km
        "Its upper end."
        return self.base + 1

    def _grow(self):
        "Not public."


def mean_rain(
    rain,  # (h, w) rain rate, mm/h
    config: Config,
    *,
    weights=None,  # (h, w) weights, no unit
) -> Cloud:  # never empty
    """Mean rain.

    Formula: sum(w * y) / sum(w), with `w` for *weights*.
    Raises DataError if there are none.
    """


def _hidden():
    "Not public."
'''


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Entries of a small module, by name."
    root = tmp_path_factory.mktemp("small")
    (root / "sslpdl_nb").mkdir()
    (root / "sslpdl_nb" / "small.py").write_text(SMALL)
    text, entries = read_module(root, "small")
    assert text == "A small module."
    return {entry.name: entry for entry in entries}


def test_what_is_public_is_read_in_its_order(small):
    assert list(small) == ["EDGES", "Storm", "Cloud", "mean_rain"]
    kinds = [entry.kind for entry in small.values()]
    assert kinds == ["data", "exception", "class", "function"]
    assert small["EDGES"].value == "(0.1, 10.0)" and small["EDGES"].text == "mm/h"
    assert [(m.kind, m.name) for m in small["Cloud"].members] == [("property", "top")]


def test_comments_become_descriptions(small):
    arguments = {a.name: a for a in small["mean_rain"].arguments}
    assert arguments["rain"].about == "(h, w) rain rate, mm/h"
    assert arguments["weights"].about == "(h, w) weights, no unit"
    assert arguments["weights"].code == "weights=None"
    assert arguments["config"].about == ""
    assert small["mean_rain"].about_result == "never empty"
    assert [(a.code, a.about) for a in small["Cloud"].arguments] == [
        ("base: float = 1.0", "km"),
        ("kind: str = 'cumulus'", ""),
    ]
    assert small["Cloud"].members[0].about_result == "km"


def test_types_of_the_package_have_full_names(small):
    text = directive(small["mean_rain"], "small", {"mean_rain": "PLACE"})
    head = text.splitlines()[0]
    assert "config: sslpdl_nb.core.Config, *, weights=None) -> sslpdl_nb.small.Cloud" in head
    assert ":param rain: (h, w) rain rate, mm/h" in text
    assert ":returns: never empty" in text
    assert "PLACE" in text
    assert "\n\nRaises DataError if there are none." in text


def test_a_docstring_is_plain_text_with_code():
    assert plain("a_b * c with `d_e`, $5 and <f>") == r"a\_b \* c with `d_e`, \$5 and \<f\>"


def test_labels_tell_large_letters_from_small():
    assert label("pretrain", "Pretrain") != label("pretrain", "pretrain")


def cell(kind, source, **more):
    extra = {"outputs": [], "execution_count": 1} if kind == "code" else {}
    return {"cell_type": kind, "id": "a", "metadata": {}, "source": source, **extra, **more}


def prepared(stem, *cells):
    "The cells of a notebook as the site gets them."
    text = json.dumps({"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    return json.loads(prepare(text, stem, OUTSIDE))["cells"]


def test_directives_of_nbdev_do_not_show():
    cells = prepared(
        "11_labels",
        cell("code", ["#| default_exp labels"]),
        cell("markdown", "# labels\n\n> What they are.\n\nText."),
        cell("code", "#| exports\nLIMIT = 3\n\ndef one():\n    return 1"),
        cell("code", "one()"),
    )
    assert [c["cell_type"] for c in cells] == ["markdown", "code", "code"]
    assert "[`sslpdl_nb.labels`](api/labels.md)" in cells[0]["source"]
    assert cells[1]["source"].startswith("LIMIT = 3")
    assert cells[1]["metadata"]["defines"] == ["LIMIT", "one"]
    assert "defines" not in cells[2]["metadata"]


def test_hidden_code_leaves_its_text():
    output = {"output_type": "execute_result", "data": {"text/markdown": ["[a](../b.md)"]}}
    cells = prepared(
        "index",
        cell("code", "#| echo: false\nshow()", outputs=[output]),
        cell("code", "#| hide\nnothing()"),
    )
    assert [c["cell_type"] for c in cells] == ["markdown"]
    assert cells[0]["source"].startswith(f"[a]({OUTSIDE}b.md)")
    assert all(f"<part{k}>" in cells[0]["source"] for k, part in enumerate(BOOK) if part.lessons)


def test_links_out_of_the_lessons_lead_into_the_repository():
    text = "[a](../params/x.yaml) and [b](10_store.ipynb)\n\n```python\nx = '[a](../c)'\n```\n"
    source = prepared("76_learning_curves", cell("markdown", text))[0]["source"]
    assert f"[a]({OUTSIDE}params/x.yaml) and [b](10_store.ipynb)" in source
    assert "'[a](../c)'" in source


def test_no_output_asks_another_host_for_a_style():
    style = '<link rel="stylesheet" href="https://example.org/icons.css"><b>kept</b>'
    output = {"output_type": "display_data", "data": {"text/html": [style]}}
    data = prepared("76_learning_curves", cell("code", "1", outputs=[output]))[0]["outputs"][0]
    assert data["data"]["text/html"] == "<b>kept</b>"


def test_each_name_knows_its_section():
    cells = [
        cell("markdown", "# labels"),
        cell("code", "#| export\ndef first():\n    pass"),
        cell("markdown", "## One\n\n```python\n## no heading\n```"),
        cell("code", "#| exports\ndef second():\n    pass"),
        cell("code", "def third():\n    pass"),
    ]
    found = places({"cells": cells}, "11_labels", "labels")
    assert found == {
        "first": "{ref}`labels: labels <made.labels.first>`",
        "second": "{ref}`labels: One <made.labels.second>`",
    }


def test_figures_and_films_are_described_by_the_text_before_them():
    section = nodes.section()
    section += nodes.title(text="Rain")
    section += nodes.paragraph(text="A map of it. Look at the south.")
    cell = nodes.container(nb_element="cell_code")
    cell += [nodes.image(uri="a.png"), nodes.image(uri="b.png", alt="kept")]
    cell += nodes.raw("", '<img src="c.gif"><video controls>', format="html")
    section += cell
    describe_images(cell)
    assert [image["alt"] for image in cell.findall(nodes.image)] == [
        "Rain: A map of it. (1 of 2)",
        "kept",
    ]
    expected = '<img alt="Rain: A map of it." src="c.gif">'
    assert cell[2].astext().startswith(expected + '<video aria-label="Rain: A map of it."')
    assert cell[2]["format"] == "html"


# ------------------------------------------------------------------ the checks find what is wrong

BAD = """<html><body>
<a href="other.html">a</a><a href="#here">b</a><a href="#nowhere">c</a><p id="here">
<a href="https://example.org">a reader may leave</a>
<img src="none.png"><script src="http://127.0.0.1:9/far.js"></script>
<div class="math">\\[x\\]</div>
<div style="width: 900px">wide</div>
<script>undefined_function()</script>
</body></html>"""


@pytest.fixture
def bad_site(tmp_path):
    (tmp_path / "index.html").write_text(BAD)
    return tmp_path


def test_faults_in_files_are_found(bad_site):
    assert check_files(read_site(bad_site)) == [
        "index.html: #nowhere has no such place",
        "index.html: other.html is not there",
        "index.html: no alternative text: none.png",
        "index.html: http://127.0.0.1:9/far.js comes from another host",
    ]


@in_browser
def test_faults_in_a_browser_are_found(bad_site):
    formulas, problems = check_in_browser(bad_site, ["index.html"])
    text = "\n".join(problems)
    assert formulas == 1
    for words in (
        "formula not drawn",
        "image not loaded",
        "pixels wider than a phone",
        "status 404",
        "asks another host: http://127.0.0.1:9/far.js",
        "error: undefined_function is not defined",
    ):
        assert words in text


# ------------------------------------------------------------------ the built site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built without a warning."
    out = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, ROOT / "tools" / "site_build.py", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return read_site(site)


def tree(path):
    return html.parse(str(path)).getroot()


def test_every_link_leads_somewhere_and_every_image_has_a_text(pages):
    assert check_files(pages) == []


def test_lessons_and_reference_know_each_other(site, pages):
    for lesson in LESSONS:
        page = pages[site / f"{lesson.stem}.html"]
        assert f"{lesson.stem}.html" in pages[site / "index.html"].links
        if lesson.module:
            assert f"api/{lesson.module}.html" in page.links
            assert f"../{lesson.stem}.html" in pages[site / "api" / f"{lesson.module}.html"].links


def test_every_public_name_has_an_entry_and_a_lesson(site, pages):
    package = {module: read_module(ROOT, module) for module in MODULES}
    ids = set().union(*(page.ids for page in pages.values()))
    expected = {name for name in public_names(package) if name.count(".") > 1}
    assert expected - ids - {f"module-sslpdl_nb.{module}" for module in MODULES} <= {
        f"sslpdl_nb.{module}" for module in MODULES
    }
    links = pages[site / "api" / "labels.html"].links
    assert {f"../11_labels.html#made-{n}" for n in ("one_hot", "label_loss")} <= set(links)


def test_comments_behind_arguments_are_shown(site):
    text = tree(site / "api" / "labels.html").text_content()
    assert re.search(r"rain\s*–\s*\(…, h, w\) rain rate, mm/h", text)
    assert "sums to 1 over the classes" in text


def test_solutions_are_folded_and_their_code_is_coloured(site):
    found = 0
    for lesson in LESSONS:
        page = tree(site / f"{lesson.stem}.html")
        notebook = (ROOT / "nbs" / f"{lesson.stem}.ipynb").read_text(encoding="utf-8")
        folded = page.xpath("//article//details[summary='Solution']")
        assert len(folded) == notebook.count("<summary>Solution</summary>") >= 2
        for one in folded:
            assert one.get("open") is None
            assert one.xpath(".//div[contains(@class, 'highlight')]//span[@class]")
        found += len(folded)
    assert found >= 2 * len(LESSONS)


def test_figures_begin_with_the_heading_above_them(site):
    page = tree(site / "11_labels.html")
    headings = page.xpath("//article//*[self::h2 or self::h3]")
    headings = [heading.text_content().rstrip("#") for heading in headings]
    texts = page.xpath("//article//div[contains(@class, 'cell_output')]//img/@alt")
    assert texts and all(text.partition(": ")[0] in headings for text in texts)


def test_lessons_open_elsewhere(site):
    links = read_page(site / "11_labels.html").links
    where = "sslpdl/sslpdl_nb"
    assert (
        f"https://colab.research.google.com/github/{where}/blob/main/nbs/11_labels.ipynb" in links
    )
    binder = f"https://mybinder.org/v2/gh/{where}/main?urlpath=lab/tree/nbs/11_labels.ipynb"
    assert binder in links
    assert "run.html#JupyterLab" in links or "run.html#jupyterlab" in links


def test_the_notebook_to_download_is_the_lesson(site):
    copy = (site / "_sources" / "11_labels.ipynb").read_text(encoding="utf-8")
    assert copy == (ROOT / "nbs" / "11_labels.ipynb").read_text(encoding="utf-8")


@in_browser
def test_every_page_in_a_browser(site, pages):
    names = [path.relative_to(site).as_posix() for path in pages]
    formulas, problems = check_in_browser(site, names)
    assert problems == []
    assert formulas == sum(page.formulas for page in pages.values()) > 500


@in_browser
def test_search_finds_a_lesson(site):
    with served(site) as address, browser_tab() as tab:
        heard = listen(tab, address)
        tab.goto(address + "search.html?q=reliability")
        tab.wait_for_selector("#search-results a[href*='19_verify.html']")
        assert heard == []


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_as_dark_as_the_reader_wants(site, scheme):
    with served(site) as address, browser_tab(scheme=scheme) as tab:
        tab.goto(address + "11_labels.html")
        color = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", color)[:3])) / 3
        assert (brightness < 80) == (scheme == "dark")
