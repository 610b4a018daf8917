"""Check what no notebook can check about itself; `make test` begins with this.

(a) exporting and cleaning change nothing         (b) imports run forward, in few floors
(c) importing stays light                         (d) every lesson has its form
(e) outputs are there, small, free of errors, and made by the code beside them
(f) code is written to be read                    (g) README.md is what nbs/index.ipynb makes
"""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parent))
from book import LESSONS
from clean_notebooks import KEY, code_hash
from make_readme import readme

ROOT = Path(__file__).resolve().parent.parent
NAME = "sslpdl_nb"
PARAMETERS = ["seed", "fast", "preset", "data_dir", "out_dir"]
HEAD = ("**You will learn**", "**You need**", "**Time**", "<!-- strip -->")
END = ("## Summary", "**Where this is used next:**", "### Exercises")
CELL_LIMIT = 50  # lines
KB_WARN, KB_LIMIT = 300, 400
FLOORS_LIMIT, ROOMS_LIMIT = 8, 26

# What an import of any module may not need
HEAVY = ["cartopy", "matplotlib", "scipy", "netCDF4", "pyproj", "dask", "eccodes", "h5py", "cupy"]
HEAVY += ["IPython", "nbdev", "fastcore", "pooch", "distributed"]
# The method reads stores; what makes stores stands beside it
WINGS = ("io", "simulate", "grids.neighbours", "grids.regrid")
# Rooms that can be lifted out: they need nothing of ours but core
ALONE = ("deform", "gradcam", "labels", "train", "verify")
# The tour and the recipes go from the top down: they use everything before it is explained
TOP_DOWN = ("00_tour", "04_recipes")
# Imports inside functions that run backwards on purpose: a fast kernel, files to read, studies
LATE = {
    "cli": {"experiments.runner", "nowcast.predict"},
    "deform": {"kernels.backend"},
    "predict": {"io.nwp", "io.prepare", "io.qpe", "grids.regrid"},
}


def numbered(root: Path) -> list[Path]:
    "The lessons."
    return sorted((root / "nbs").glob("[0-9]*.ipynb"))


def all_notebooks(root: Path) -> list[Path]:
    "The lessons and the front page."
    return [*numbered(root), root / "nbs" / "index.ipynb"]


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list:
    return [c for c in read(path).cells if c.cell_type == "code"]


# ------------------------------------------------------------------ (a) exporting changes nothing


def hashes(root: Path) -> dict:
    "Every file that an export may write, with the hash of its content."
    files = [root / "README.md", root / "_quarto.yml"]
    for folder in ("nbs", NAME):
        files += [p for p in (root / folder).rglob("*") if "__pycache__" not in p.parts]
    result = {}
    for path in files:
        if path.is_file() and ".ipynb_checkpoints" not in path.parts:
            content = path.read_bytes()
            result[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    return result


def check_sync(root: Path) -> list[str]:
    "Export a copy of the working tree, and compare."
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".*.tmp")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / root.name
        copy.mkdir()
        for name in ("nbs", NAME):
            shutil.copytree(root / name, copy / name, ignore=ignore)
        for name in ("settings.ini", "setup.py", "README.md", "_quarto.yml", "ruff.toml"):
            if (root / name).exists():
                shutil.copy(root / name, copy / name)
        before = hashes(copy)
        command = [sys.executable, str(ROOT / "tools" / "export.py")]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        if done.returncode:
            return [f"tools/export.py fails: {done.stderr.strip().splitlines()[-1]}"]
        after = hashes(copy)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    return [f"{name} is not what the notebooks say: run `make export`" for name in changed]


# ------------------------------------------------------------------ (b) imports


def without_magics(source: str) -> str:
    "Code that Python can parse: IPython's own lines become blank."
    if source.lstrip().startswith("%%"):
        return ""
    return re.sub(r"^(\s*)([%!?].*|.*=\s*[%!].*)$", r"\1pass", source, flags=re.M)


def modules() -> list[str]:
    "The modules of the book, in order."
    return [lesson.module for lesson in LESSONS if lesson.module]


def imported_names(node: ast.AST, known: list[str]) -> set[str]:
    "Our modules that one import statement names, below the package."
    found = set()
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names if a.name.startswith(NAME + ".")]
        found |= {name.removeprefix(NAME + ".") for name in names}
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == NAME:
        package = node.module.removeprefix(NAME).lstrip(".")
        for alias in node.names:
            longer = f"{package}.{alias.name}".lstrip(".")
            found.add(longer if longer in known or not package else package)
    return found


def own_imports(
    source: str,  # code
    known: list[str] | None = None,  # modules
    late: bool | None = None,  # True: only those inside functions; False: only the others
) -> set[str]:
    "Our modules that a piece of code imports, in whatever form."
    known = modules() if known is None else known
    tree = ast.parse(without_magics(source))
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            inside |= set(map(id, ast.walk(node)))
    found = set()
    for node in ast.walk(tree):
        if late is None or late == (id(node) in inside):
            found |= imported_names(node, known)
    return found


def is_exported(source: str) -> bool:
    return bool(re.match(r"#\|\s*export", source))


def check_forward(root: Path, lessons=LESSONS) -> list[str]:
    "Each notebook imports only modules that an earlier notebook exports."
    problems, before = [], []
    known = [lesson.module for lesson in lessons]
    stems = [path.stem for path in numbered(root)]
    if stems != [lesson.stem for lesson in lessons]:
        odd = sorted(set(stems) ^ {lesson.stem for lesson in lessons}) or "another order"
        problems.append(f"nbs/ and the list in tools/book.py differ: {odd}")
    for lesson in lessons:
        path = root / "nbs" / f"{lesson.stem}.ipynb"
        if not path.exists():
            continue
        sources = [c.source for c in code_cells(path)]
        exported = [m for s in sources for m in re.findall(r"^#\|\s*default_exp\s+(\S+)", s, re.M)]
        if exported != ([lesson.module] if lesson.module else []):
            problems.append(f"{path.name} must export {lesson.module or 'nothing'}: {exported}")
        if lesson.stem in TOP_DOWN:
            continue
        allowed = {*before, lesson.module}
        for source in sources:
            late = LATE.get(lesson.module, set()) if is_exported(source) else set()
            early = own_imports(source, known, late=False) - allowed
            early |= own_imports(source, known, late=True) - allowed - late
            problems += [f"{path.name} imports {m} before it exists" for m in sorted(early)]
        before.append(lesson.module)
    return problems


def import_graph(root: Path) -> dict:
    "Module -> modules that it imports when it is imported."
    graph = {}
    for module in modules():
        path = root / NAME / (module.replace(".", "/") + ".py")
        source = path.read_text(encoding="utf-8") if path.exists() else ""
        graph[module] = own_imports(source, late=False) - {module}
    return graph


def reached(graph: dict, module: str) -> set[str]:
    "Everything that comes with an import of a module."
    found, to_do = set(), [module]
    while to_do:
        for other in graph.get(to_do.pop(), ()):
            if other not in found:
                found.add(other)
                to_do.append(other)
    return found


def floor_of(graph: dict, module: str, above: tuple = ()) -> int:
    "Length of the longest chain of imports that begins at a module; ValueError for a circle."
    if module in above:
        raise ValueError(" -> ".join([*above[above.index(module) :], module]))
    return 1 + max((floor_of(graph, m, (*above, module)) for m in graph[module]), default=0)


def check_house(root: Path, graph: dict | None = None) -> list[str]:
    "No circle, few floors, few rooms in view, and a method that needs no wing."
    graph = import_graph(root) if graph is None else graph
    try:
        floors = max(floor_of(graph, module) for module in graph)
    except ValueError as error:
        return [f"imports run in a circle: {error}"]
    problems = []
    if floors > FLOORS_LIMIT:
        problems.append(f"{floors} floors of imports, at most {FLOORS_LIMIT} expected")
    rooms = {module.split(".")[0] for module in graph}
    if len(rooms) > ROOMS_LIMIT:
        problems.append(f"{len(rooms)} rooms at the top level, at most {ROOMS_LIMIT} expected")
    for module in ALONE:
        for other in sorted(graph.get(module, set()) - {"core"}):
            problems.append(f"{module} needs {other}; it may need only core")
    for module in graph:
        if "." in module:
            continue
        for other in sorted(reached(graph, module)):
            if other.startswith(WINGS):
                problems.append(f"{module} belongs to the method, but its import reaches {other}")
    if not problems:
        print(f"   {len(graph)} modules in {len(rooms)} rooms on {floors} floors")
    return problems


# ------------------------------------------------------------------ (c) light imports

IMPORTER = """
import importlib, sys
sys.modules |= dict.fromkeys({heavy})               # as if they were not installed
for module in {modules}:
    try: importlib.import_module(module)
    except Exception as error: print(f"import {{module}}: {{type(error).__name__}}: {{error}}")
"""


def check_light(root: Path, wanted: list[str] | None = None) -> list[str]:
    "Every module but viz imports where there is no cartopy, matplotlib, scipy ..."
    wanted = [m for m in modules() if m != "viz"] if wanted is None else wanted
    code = IMPORTER.format(heavy=HEAVY, modules=[f"{NAME}.{m}" for m in wanted])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    return done.stdout.splitlines() + (done.stderr.splitlines()[-1:] if done.returncode else [])


# ------------------------------------------------------------------ (d) form


def parameter_names(source: str) -> list[str]:
    return [n.targets[0].id for n in ast.parse(source).body if isinstance(n, ast.Assign)]


def check_form(root: Path) -> list[str]:
    "Parameters, outcomes, prerequisites and minutes at the top; summary and exercises at the end."
    problems, first = [], None
    for path in numbered(root):
        notebook = read(path)
        code = [c for c in notebook.cells if c.cell_type == "code"]
        texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
        tagged = [c.source for c in code if "parameters" in c.metadata.get("tags", [])]
        first = first or tagged[:1]
        if [parameter_names(s) for s in tagged] != [PARAMETERS]:
            expected = ", ".join(PARAMETERS)
            problems.append(f"{path.name}: one cell tagged parameters with {expected} expected")
        elif tagged != first:
            problems.append(f"{path.name}: its parameters cell differs from that of the first")
        for text, parts in ((texts[0], HEAD), (texts[-1], END)):
            problems += [f"{path.name}: no {p} where it belongs" for p in parts if p not in text]
        details = r"<details.*?^```python.*?^```.*?</details>"
        count = len(re.findall(details, "\n".join(texts), re.M | re.S))
        if count < 2:
            problems.append(f"{path.name}: two exercises with solutions expected, found {count}")
        longest = max(len(c.source.splitlines()) for c in code)
        if longest > CELL_LIMIT:
            problems.append(
                f"{path.name}: a cell of {longest} lines, at most {CELL_LIMIT} expected"
            )
    return problems


# ------------------------------------------------------------------ (e) outputs


def check_outputs(root: Path) -> list[str]:
    "Committed outputs: present, no errors, no noise, small."
    problems = []
    for path in all_notebooks(root):
        if not path.exists():
            problems.append(f"{path.name} is missing")
            continue
        kb = path.stat().st_size / 1024
        outputs = [o for c in code_cells(path) for o in c.outputs]
        if path.name != "index.ipynb" and not outputs:
            problems.append(f"{path.name} has no outputs: run `make notebooks`")
        for o in outputs:
            if o.output_type == "error":
                problems.append(f"{path.name}: error in the outputs: {o.ename}: {o.evalue}")
            if o.get("name") == "stderr":
                problems.append(f"{path.name}: stderr in the outputs: {o.text.strip()[:70]}")
        if kb > KB_LIMIT:
            problems.append(f"{path.name} has {kb:.0f} kB, more than {KB_LIMIT}")
        elif kb > KB_WARN:
            print(f"   note: {path.name} has {kb:.0f} kB, more than {KB_WARN}")
    return problems


def check_executed(root: Path) -> list[str]:
    "The outputs were made by the code beside them: run top to bottom, after the last change."
    problems = []
    for path in filter(Path.exists, all_notebooks(root)):
        notebook = read(path)
        cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
        counts = [c.execution_count for c in cells]
        if notebook.metadata.get(KEY) != code_hash(notebook):
            command = f"python tools/run_notebooks.py --in-place {path.stem}"
            problems.append(f"{path.name} was not run since its code changed: run `{command}`")
        elif counts != list(range(1, len(counts) + 1)):
            expected = f"not numbered 1 to {len(counts)}"
            problems.append(f"{path.name}: its cells are {expected}: run `make export`")
    return problems


# ------------------------------------------------------------------ (f) code to be read

FORBIDDEN = re.compile(r"/(?:home|opt|root|work)/")
FOLDERS = ("benchmarks", "data_samples", "tests", "tools")


def hard_to_read(source: str) -> list[str]:
    "Nested conditional expressions, and names bound inside a call; what ruff does not look for."
    found = []
    for node in ast.walk(ast.parse(source)):
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.IfExp) and any(isinstance(c, ast.IfExp) for c in children):
            found.append("a conditional expression inside another")
        if isinstance(node, ast.Call) and any(isinstance(c, ast.NamedExpr) for c in children):
            found.append("a name bound inside a call")
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.NamedExpr):
            found.append("a name bound inside a call")
    return found


def texts_of(cell) -> list[str]:
    "Everything that a reader sees of a cell."
    texts = [cell.source]
    for output in cell.get("outputs", []):
        texts.append(str(output.get("text", "")))
        data = output.get("data", {})
        texts += [str(data.get(kind, "")) for kind in ("text/plain", "text/html", "text/markdown")]
    return texts


def check_readable(root: Path) -> list[str]:
    "Code in one step at a time, and no path of one machine."
    code, texts = [], []
    for path in all_notebooks(root):
        code += [(path.name, without_magics(c.source)) for c in code_cells(path)]
        texts += [(path.name, text) for cell in read(path).cells for text in texts_of(cell)]
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            piece = str(path.relative_to(root)), path.read_text(encoding="utf-8")
            code.append(piece)
            texts.append(piece)
    problems = [f"{name}: {what}" for name, source in code for what in hard_to_read(source)]
    for name, text in texts:
        if name != "tools/check_repo.py":
            problems += [f"{name}: the path {found}" for found in FORBIDDEN.findall(text)]
    return problems


# ------------------------------------------------------------------ (g) README


def check_readme(root: Path) -> list[str]:
    "The front page as nbs/index.ipynb makes it, with links that lead somewhere."
    index, target = root / "nbs" / "index.ipynb", root / "README.md"
    if not index.exists():
        return ["nbs/index.ipynb is missing"]
    text, problems = readme(index), []
    if target.read_text(encoding="utf-8") != text:
        problems.append("README.md differs from nbs/index.ipynb: run `make export`")
    links = re.findall(r'(?:\]\(|(?:src|href)=")((?!https?:|#|mailto:)[^)\s"#]+)', text)
    for link in sorted(set(links)):
        if not (root / link).exists():
            problems.append(f"README.md points at {link}, which is not there")
    return problems


def check_links(root: Path) -> list[str]:
    "Links of the lessons to other files lead somewhere."
    problems = []
    for path in all_notebooks(root):
        text = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
        text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        for link in sorted(set(re.findall(r"\]\(((?!https?:|#|mailto:)[^)\s#]+)", text))):
            if not (path.parent / link).exists():
                problems.append(f"{path.name} points at {link}, which is not there")
    return problems


CHECKS = {
    "modules are what the notebooks say": check_sync,
    "imports run forward": check_forward,
    "the house has few floors": check_house,
    "imports stay light": check_light,
    "every lesson has its form": check_form,
    "outputs are kept, clean and small": check_outputs,
    "every cell was run as it stands": check_executed,
    "code is written to be read": check_readable,
    "links lead somewhere": check_links,
    "README is what index makes": check_readme,
}


def main(root: Path = ROOT) -> int:
    failed = False
    for name, check in CHECKS.items():
        problems = check(root)
        failed |= bool(problems)
        print(f"{'FAILED' if problems else 'ok':7}{name}", flush=True)
        for problem in problems:
            print(f"   {problem}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
