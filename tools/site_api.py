"""The API reference: from the source of a module to a page in Markdown, without importing it.

Signatures and docstrings are read from the syntax tree, and the comments behind arguments (shape,
unit) from the tokens beside it. `tools/site_build.py` writes the pages.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "sslpdl_nb"
LONGEST_VALUE = 70  # characters of a constant that are shown


# ------------------------------------------------------------------ reading


@dataclass
class Argument:
    "One argument of a function, or one field of a data class."

    code: str  # as it stands in the signature: name, type and default
    name: str
    about: str = ""  # the comment behind it


@dataclass
class Entry:
    "Something public: a function, a class, a method, a property or a constant."

    kind: str  # function | class | method | property | attribute | data | exception
    name: str
    line: int  # where it begins in the file
    text: str = ""  # its docstring, or the comment behind a constant
    arguments: list = field(default_factory=list)
    result: str = ""  # type that comes out
    about_result: str = ""
    value: str = ""  # of a constant
    parents: list = field(default_factory=list)  # of a class
    marks: list = field(default_factory=list)  # classmethod, staticmethod
    members: list = field(default_factory=list)  # of a class


def comments(source: str) -> dict:
    "Line number -> the comment at its end, or on its own."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


class FullNames(ast.NodeTransformer):
    "Types of the package by their full names, so that they lead to their entries."

    def __init__(self, names: dict):
        self.names = names

    def visit_Name(self, node):
        return ast.Name(self.names.get(node.id, node.id))


def name_types(tree: ast.Module, module: str):
    "Give the types in all signatures of a module their full names."
    names = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.ClassDef):
            names[node.name] = f"{PACKAGE}.{module}.{node.name}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation:
            node.annotation = FullNames(names).visit(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns:
            line = node.returns.end_lineno
            node.returns = FullNames(names).visit(node.returns)
            node.returns.end_lineno = line


def docstring(node) -> str:
    "A docstring with its errors and sources in paragraphs of their own."
    text = ast.get_docstring(node) or ""
    return re.sub(r"\n(?=(?:Raises|Source:) )", "\n\n", text)


def with_type(name: str, annotation, default=None) -> str:
    "An argument as code."
    code = name if annotation is None else f"{name}: {ast.unparse(annotation)}"
    if default is None:
        return code
    return code + (" = " if annotation else "=") + ast.unparse(default)


def arguments_of(node, notes: dict) -> list:
    "The arguments of a function, with a comment where an argument has a line of its own."
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    first = len(plain) - len(given.defaults)
    found = [
        (arg, with_type(arg.arg, arg.annotation, given.defaults[k - first] if k >= first else None))
        for k, arg in enumerate(plain)
    ]
    if given.vararg:
        found.append((given.vararg, "*" + with_type(given.vararg.arg, given.vararg.annotation)))
    elif given.kwonlyargs:
        found.append((None, "*"))
    for arg, default in zip(given.kwonlyargs, given.kw_defaults):
        found.append((arg, with_type(arg.arg, arg.annotation, default)))
    if given.kwarg:
        found.append((given.kwarg, "**" + with_type(given.kwarg.arg, given.kwarg.annotation)))
    lines = [arg.lineno for arg, _ in found if arg]
    result = []
    for arg, code in found:
        alone = arg and arg.lineno != node.lineno and lines.count(arg.lineno) == 1
        about = notes.get(arg.end_lineno, "") if alone else ""
        result.append(Argument(code, arg.arg if arg else "*", about))
    return result


def function_entry(node, notes: dict, kind: str = "function") -> Entry:
    "A function or method."
    entry = Entry(kind, node.name, node.lineno, docstring(node))
    entry.arguments = arguments_of(node, notes)
    marks = [ast.unparse(one) for one in node.decorator_list]
    if kind == "method":
        entry.marks = [mark for mark in marks if mark in ("classmethod", "staticmethod")]
        if "staticmethod" not in marks:
            entry.arguments = entry.arguments[1:]  # without self
        if any(mark.endswith("property") for mark in marks):
            entry.kind = "property"
    if node.returns is not None:
        entry.result = ast.unparse(node.returns)
        entry.about_result = notes.get(node.returns.end_lineno, "")
    return entry


def is_shown(node) -> bool:
    "Whether a method belongs to the reference: it has a docstring and can be called from outside."
    public = not node.name.startswith("_") or node.name in ("__call__", "__getitem__", "__len__")
    return public and ast.get_docstring(node) is not None


def class_entry(node: ast.ClassDef, notes: dict) -> Entry:
    "A class: how it is made, and its methods."
    entry = Entry("class", node.name, node.lineno, docstring(node))
    entry.parents = [ast.unparse(base) for base in node.bases]
    if any(parent.endswith(("Error", "Exception", "Warning")) for parent in entry.parents):
        entry.kind = "exception"
    made_from_fields = "NamedTuple" in entry.parents
    made_from_fields |= any("dataclass" in ast.unparse(one) for one in node.decorator_list)
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            if part.name == "__init__":
                entry.arguments = function_entry(part, notes, "method").arguments
            elif is_shown(part):
                entry.members.append(function_entry(part, notes, "method"))
        elif isinstance(part, ast.AnnAssign) and made_from_fields:
            name = part.target.id
            code = with_type(name, part.annotation, part.value)
            entry.arguments.append(Argument(code, name, notes.get(part.end_lineno, "")))
    return entry


def constants(node, notes: dict) -> list:
    "The names that an assignment gives."
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    value = ast.unparse(node.value) if node.value else ""
    if len(names) > 1 or len(value) > LONGEST_VALUE:
        value = ""
    about = notes.get(node.end_lineno) or notes.get(node.lineno, "")
    return [Entry("data", name, node.lineno, about, value=value) for name in names]


def read_module(
    root: Path,  # of the repository
    module: str,  # below the package
) -> tuple:  # docstring; entries, in the order of the file
    "What a module makes public."
    path = root / PACKAGE / (module.replace(".", "/") + ".py")
    source = path.read_text(encoding="utf-8")
    tree, notes = ast.parse(source), comments(source)
    name_types(tree, module)
    public, entries = [], []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            entries.append(function_entry(node, notes))
        elif isinstance(node, ast.ClassDef):
            entries.append(class_entry(node, notes))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            found = constants(node, notes)
            if found and found[0].name == "__all__":
                public = ast.literal_eval(node.value)
            entries += found
    last = {entry.name: entry for entry in entries if entry.name in public}
    return docstring(tree), list(last.values())


def read_package(root: Path, modules) -> dict:  # module -> (docstring, entries)
    "All modules, by their names below the package."
    return {module: read_module(root, module) for module in modules}


def public_names(package: dict) -> set:
    "The full name of everything in the reference."
    names = set()
    for module, (_, entries) in package.items():
        names.add(f"{PACKAGE}.{module}")
        for entry in entries:
            full = f"{PACKAGE}.{module}.{entry.name}"
            names |= {full, *(f"{full}.{member.name}" for member in entry.members)}
    return names


# ------------------------------------------------------------------ writing

CODE = re.compile(r"(`+[^`]+`+)")


def plain(text: str) -> str:
    "A docstring or comment as Markdown: only `code` keeps a meaning."
    parts = CODE.split(text)
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"([\\*_\[\]<>$|~])", r"\\\1", parts[k])
        parts[k] = re.sub(r"^([#%+])", r"\\\1", parts[k], flags=re.M)
    return "".join(parts)


def one_line(text: str) -> str:
    "The first paragraph of a docstring."
    return " ".join(text.partition("\n\n")[0].split())


def signature(entry: Entry) -> str:
    "The line under which an entry stands."
    if entry.kind in ("data", "attribute", "property"):
        return entry.name
    code = f"{entry.name}({', '.join(argument.code for argument in entry.arguments)})"
    return f"{code} -> {entry.result}" if entry.result else code


def options(entry: Entry, module: str) -> list:
    "The options of a directive."
    lines = [f":module: {PACKAGE}.{module}"]
    lines += [f":{mark}:" for mark in entry.marks]
    if entry.value:
        lines.append(f":value: {entry.value}")
    if entry.kind == "property" and entry.result:
        lines.append(f":type: {entry.result}")
    return lines


def directive(entry: Entry, module: str, places: dict, fence: str = ":::::") -> str:
    "An entry as a directive of Sphinx."
    lines = [fence + f"{{py:{entry.kind}}} {signature(entry)}", *options(entry, module), ""]
    lines += [plain(entry.text), ""]
    parents = [parent for parent in entry.parents if parent != "NamedTuple"]
    if parents:
        lines += ["Parents: " + ", ".join(f"`{parent}`" for parent in parents), ""]
    for argument in entry.arguments:
        if argument.about:
            lines.append(f":param {argument.name}: {plain(argument.about)}")
    if entry.about_result and entry.kind != "property":
        lines.append(f":returns: {plain(entry.about_result)}")
    elif entry.about_result:
        lines += [plain(entry.about_result)]
    if entry.name in places:
        lines += ["", f"*Made in the lesson* {places[entry.name]}"]
    lines.append("")
    for member in entry.members:
        lines += [directive(member, module, {}, fence[:-1]), ""]
    return "\n".join([*lines, fence])


def module_page(
    module: str,  # below the package
    text: str,  # its docstring
    entries: list,
    places: dict,  # name -> link to the section of the lesson that defines it
    lesson: str,  # link to the lesson
) -> str:  # Markdown
    "The page of one module."
    full = f"{PACKAGE}.{module}"
    lines = [f"# {plain(full)}", "", f"```{{py:module}} {full}", "```", "", plain(text), ""]
    lines += [f"**Lesson:** {lesson}", ""]
    if entries:
        lines += ["| name | what it is |", "|---|---|"]
    for entry in entries:
        about = plain(one_line(entry.text)) or plain(entry.value)
        lines.append(f"| {{py:obj}}`{entry.name} <{full}.{entry.name}>` | {about} |")
    lines.append("")
    for entry in entries:
        lines += [directive(entry, module, places), ""]
    return "\n".join(lines)


def index_page(package: dict, parts: list) -> str:
    "The front page of the reference: one table for each part of the book."
    lines = ["# Reference", ""]
    lines += ["Every public function, class and constant, made from the source. ", ""]
    lines += ["Shapes and units stand beside the arguments; each entry names its lesson.", ""]
    for title, modules in parts:
        lines += [f"## {title}", "", "| module | what it holds |", "|---|---|"]
        for module in modules:
            about = plain(one_line(package[module][0]))
            lines.append(f"| [{PACKAGE}.{plain(module)}]({module}.md) | {about} |")
        lines.append("")
    lines += ["```{toctree}", ":hidden:", ":maxdepth: 1", ""]
    for _, modules in parts:
        lines += [f"{module} <{module}>" for module in modules]
    return "\n".join([*lines, "```", ""])
