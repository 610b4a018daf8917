"""How a lesson becomes a page of the site.

The text of a notebook is changed when Sphinx reads it (`prepare`), and the page when it has been
read (`finish`); the files in nbs/ stay as they are.
"""

from __future__ import annotations

import ast
import html
import json
import re

from book import BOOK, LESSONS
from docutils import nodes
from make_readme import FENCE, LINK
from site_api import PACKAGE
from sphinx import addnodes

DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)
FOREIGN_STYLE = re.compile(r"<link[^>]*href=[\"']https?:[^>]*>")
UNNAMED_IMAGE = re.compile(r"<img\b(?![^>]*\balt=)")
UNNAMED_FILM = re.compile(r"<video\b(?![^>]*\baria-label=)")
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z(])")
LONGEST_ALT = 200  # characters
MODULE_OF = {lesson.stem: lesson.module for lesson in LESSONS}


# ------------------------------------------------------------------ the text


def relink(markdown: str, outside: str) -> str:
    "Links out of nbs/ as links into the repository, except inside code."

    def to_repository(match):
        if not match[2].startswith("../"):
            return match[0]
        return match[1] + outside + match[2].removeprefix("../")

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(to_repository, part) for part in parts[::2]]
    return "".join(parts)


def defined_names(source: str) -> list:
    "The functions, classes and constants that an exported cell defines."
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return found


def code_cell(cell: dict, source: str, outside: str) -> list:
    "A code cell for the page: without nbdev's directives, hidden where they say so."
    words = " ".join(DIRECTIVE.findall(source))
    if re.search(r"\b(hide|default_exp)\b", words):
        return []
    cell["source"] = DIRECTIVE.sub("", source)
    if re.search(r"\bexport\w*", words):
        cell["metadata"]["defines"] = defined_names(cell["source"])
    texts = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "text/html" in data:
            data["text/html"] = FOREIGN_STYLE.sub("", "".join(data["text/html"]))
        texts += ["".join(data[kind]) for kind in data if kind == "text/markdown"]
    if re.search(r"echo:\s*false", words):
        text = relink("\n\n".join(texts), outside)
        return [{"cell_type": "markdown", "id": cell["id"], "metadata": {}, "source": text}]
    return [cell]


def link_to_module(markdown: str, module: str) -> str:
    "The first cell, with a line below its subtitle that leads to the reference."
    line = f"\n\n**Module** [`{PACKAGE}.{module}`](api/{module}.md)\n\n"
    return re.sub(r"(^> .*$)\n", lambda m: m[1] + line, markdown, count=1, flags=re.M)


def contents() -> str:
    "The table of contents of the whole site, for the front page."
    pages = [f"{k}. {part.title} <part{k}>" for k, part in enumerate(BOOK) if part.lessons]
    pages = ["Front page <self>", "run", *pages, "Reference <api/index>"]
    return "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])


def prepare(text: str, stem: str, outside: str) -> str:
    "The text of a notebook as the site needs it."
    notebook = json.loads(text)
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cells += code_cell(cell, source, outside)
        else:
            cells.append({**cell, "source": relink(source, outside)})
    texts = [cell for cell in cells if cell["cell_type"] == "markdown"]
    if stem == "index":
        texts[-1]["source"] += "\n\n" + contents()
    elif MODULE_OF.get(stem):
        texts[0]["source"] = link_to_module(texts[0]["source"], MODULE_OF[stem])
    notebook["cells"] = cells
    notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return json.dumps(notebook)


# ------------------------------------------------------------------ where names are made


def label(module: str, name: str) -> str:
    "The label of the place where a name is made; Sphinx does not tell large letters from small."
    return re.sub(r"([A-Z])", r"-\1", f"made.{module}.{name}").lower()


def places(notebook: dict, stem: str, module: str) -> dict:
    "Name -> link to the section of a lesson that defines it."
    title, found = stem.partition("_")[2], {}
    section = title
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^##+ (.*)$", "".join(FENCE.split(source)[::2]), re.M)
            section = headings[-1] if headings else section
        elif re.match(r"#\|\s*export", source):
            text = re.sub(r"[`*$<>\\]", "", section)
            for name in defined_names(source):
                found[name] = f"{{ref}}`{title}: {text} <{label(module, name)}>`"
    return found


# ------------------------------------------------------------------ the page


def imported_names(document: nodes.document) -> dict:
    "Name -> full name of what the code of a lesson imports from the package."
    found = {}
    pattern = rf"^from ({PACKAGE}[\w.]*) import (\([^)]*\)|.*)$"
    for block in document.findall(nodes.literal_block):
        for module, names in re.findall(pattern, block.astext(), re.M):
            for name in re.findall(r"\w+", names):
                found[name] = f"{module}.{name}"
    return found


def cross_reference(text: str, full: str, docname: str) -> nodes.Node:
    "Code that leads to its entry in the reference."
    attributes = {"refdomain": "py", "reftype": "obj", "reftarget": full, "refexplicit": True}
    code = nodes.literal(text, text, classes=["xref"])
    return addnodes.pending_xref("", code, refdoc=docname, **attributes)


def link_code(document: nodes.document, docname: str, public: set):
    "Names in the text lead to the reference."
    own = MODULE_OF.get(docname, docname.removeprefix("api/"))
    imported = imported_names(document)
    for code in list(document.findall(nodes.literal)):
        if isinstance(code.parent, (nodes.reference, nodes.title, addnodes.pending_xref)):
            continue
        text = code.astext()
        name = text.removesuffix("()")
        first, _, rest = name.partition(".")
        through_import = ".".join(filter(None, [imported.get(first, ""), rest]))
        ways = [name, f"{PACKAGE}.{name}", f"{PACKAGE}.{own}.{name}", through_import]
        full = next((way for way in ways if way in public), None)
        if full:
            code.replace_self(cross_reference(text, full, docname))


def mark_definitions(cell: nodes.Element, docname: str, public: set, domain):
    "A cell that goes into the module can be reached by name, and leads to the reference."
    module = MODULE_OF.get(docname)
    names = cell["cell_metadata"].get("defines", [])
    for name in names:
        cell["ids"].append(f"made-{name}")
        domain.note_hyperlink_target(label(module, name), docname, f"made-{name}", name)
    line = nodes.paragraph(classes=["made-here"])
    for name in names:
        full = f"{PACKAGE}.{module}.{name}"
        if full in public:
            between = nodes.Text(" " if len(line) else "Reference: ")
            line += [between, cross_reference(name, full, docname)]
    if len(line):
        cell += line


def description(cell: nodes.Element) -> str:
    "What the figures of a cell show: the heading above it, and the sentence before it."
    around = cell.parent
    title = around.next_node(nodes.title)
    heading = title.astext() if title else ""
    before = around.children[: around.index(cell)]
    texts = [node.astext() for node in before if isinstance(node, nodes.paragraph)]
    sentence = SENTENCE_END.split(" ".join(texts[-1].split()))[0] if texts else ""
    text = ": ".join(filter(None, [heading, sentence]))
    if len(text) <= LONGEST_ALT:
        return text
    return text[:LONGEST_ALT].rpartition(" ")[0] + " ..."


def describe_images(cell: nodes.Element):
    "Every figure and film of a cell has an alternative text."
    images = list(cell.findall(nodes.image))
    for k, image in enumerate(images, 1):
        if not image.get("alt"):
            number = f" ({k} of {len(images)})" if len(images) > 1 else ""
            image["alt"] = description(cell) + number
    for raw in list(cell.findall(nodes.raw)):
        text = html.escape(description(cell))
        new = UNNAMED_IMAGE.sub(f'<img alt="{text}"', raw.astext())
        new = UNNAMED_FILM.sub(f'<video aria-label="{text}"', new)
        raw.replace_self(nodes.raw("", new, **raw.non_default_attributes()))


def finish(document: nodes.document, docname: str, public: set, domain):
    "Links and alternative texts of a page."
    for cell in list(document.findall(nodes.container)):
        if cell.get("nb_element") == "cell_code":
            describe_images(cell)
            mark_definitions(cell, docname, public, domain)
    link_code(document, docname, public)
