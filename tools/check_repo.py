"""Check what no notebook can check about itself; `make test` begins with this.

(a) exporting and cleaning change nothing     (b) imports run forward and stay light
(c) each notebook has the parameters cell and its exercises   (d) outputs are there, small and free of errors, and every cell was run, top to bottom, as it stands
(e) README.md is what nbs/index.ipynb makes
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
from clean_notebooks import KEY, code_hash
from make_readme import readme

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = ["seed", "fast", "preset", "data_dir", "out_dir"]
LIGHT = [
    "core",
    "laboratory",
    "archive",
    "deform",
    "cuda",
    "layer",
    "encoder",
    "decoder",
    "masking",
    "train",
    "labels",
    "finetune",
    "verify",
    "gradcam",
]
HEAVY = [
    "cartopy",
    "matplotlib",
    "scipy",
    "netCDF4",
    "pyproj",
    "dask",
    "eccodes",
    "cupy",
    "IPython",
    "nbdev",
    "fastcore",
]
ALONE = [
    "verify",
    "gradcam",
    "neighbours",
    "deform",
    "laboratory",
]  # may import core and nothing else of ours
KB_WARN, KB_LIMIT = 300, 400
NAME = "sslpdl_nb"


def numbered(root: Path) -> list[Path]:
    return sorted((root / "nbs").glob("[0-9]*.ipynb"))


def every(root: Path) -> list[Path]:
    "The numbered notebooks and the front page."
    return [*numbered(root), root / "nbs" / "index.ipynb"]


def code_cells(path: Path) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


# ------------------------------------------------------------------ (a) exporting and cleaning change nothing


def hashes(root: Path) -> dict:
    "Every file that nbdev may write, with the hash of its content."
    files = [
        p
        for folder in ("nbs", NAME)
        for p in (root / folder).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts
    ]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check_sync(root: Path) -> list[str]:
    "Export and clean a copy of the working tree, and compare."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / root.name
        copy.mkdir()
        for name in ("nbs", NAME):
            shutil.copytree(
                root / name,
                copy / name,
                symlinks=False,
                ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".*.tmp"),
            )
        for name in ("settings.ini", "setup.py", "README.md", "_quarto.yml"):
            if (root / name).exists():
                shutil.copy(root / name, copy / name)
        before = hashes(copy)
        for command in (
            [Path(sys.executable).with_name("nbdev_export")],
            [sys.executable, Path(__file__).with_name("clean_notebooks.py")],
        ):
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
            if done.returncode:
                return [f"{command[-1].stem} fails: {done.stderr.strip().splitlines()[-1]}"]
        after = hashes(copy)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    return [f"{name} is not what the notebooks say: run `make export`" for name in changed]


# ------------------------------------------------------------------ (b) imports


def without_magics(source: str) -> str:
    "Code that Python can parse: IPython's own lines become blank."
    if source.lstrip().startswith("%%"):
        return ""
    return re.sub(r"^(\s*)([%!?].*|.*=\s*[%!].*)$", r"\1pass", source, flags=re.M)


def own_imports(source: str) -> set[str]:
    "Our modules that a piece of code imports, in whatever form."
    found = set()
    for node in ast.walk(ast.parse(without_magics(source))):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(NAME + ".")}
        elif isinstance(node, ast.ImportFrom) and node.module == NAME:
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME + "."):
            found.add(node.module.split(".")[1])
    return found


def check_forward(root: Path) -> list[str]:
    "Each notebook imports only modules that an earlier notebook exports; some import core alone."
    seen, problems = [], []
    for path in numbered(root):
        cells, module = [c.source for c in code_cells(path)], path.stem.split("_", 1)[1]
        exported = [re.findall(r"^#\|\s*default_exp\s+(\S+)", s, re.M) for s in cells]
        if [module] != [m for names in exported for m in names]:
            problems.append(f"{path.name} must export exactly {module}")
        for source in cells:
            problems += [
                f"{path.name} imports {m} before it exists"
                for m in sorted(own_imports(source) - set(seen))
            ]
            if module in ALONE and re.match(r"#\|\s*export", source):
                problems += [
                    f"{path.name} exports code that needs {m}; it may need only core"
                    for m in sorted(own_imports(source) - {"core"})
                ]
        seen.append(module)
    return problems


IMPORTER = """
import importlib, sys
sys.modules |= dict.fromkeys({heavy})               # as if they were not installed
for module in {modules}:
    try: importlib.import_module(module)
    except Exception as error: print(f"import {{module}}: {{type(error).__name__}}: {{error}}")
"""


def check_light(root: Path, modules=LIGHT) -> list[str]:
    "Modules of model and training import where there is no cartopy, matplotlib, scipy ..."
    code = IMPORTER.format(heavy=HEAVY, modules=[f"{NAME}.{m}" for m in modules])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    return done.stdout.splitlines() + (done.stderr.splitlines()[-1:] if done.returncode else [])


# ------------------------------------------------------------------ (c) form


def check_form(root: Path) -> list[str]:
    "The tagged parameters cell with its five literals, and two exercises with solutions."
    problems, first = [], None
    for path in numbered(root):
        tagged = [c.source for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
        names = [
            [n.targets[0].id for n in ast.parse(s).body if isinstance(n, ast.Assign)]
            for s in tagged
        ]
        if names != [PARAMETERS]:
            problems.append(
                f"{path.name}: one cell tagged parameters with {', '.join(PARAMETERS)} expected, found {names}"
            )
        elif tagged[0] != (first := first or tagged[0]):
            problems.append(
                f"{path.name}: its parameters cell differs from that of {numbered(root)[0].name}"
            )
        text = "\n".join(
            c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
        )
        count = len(re.findall(r"<details.*?^```python.*?^```.*?</details>", text, re.M | re.S))
        if count < 2:
            problems.append(
                f"{path.name}: two exercises with folded solutions expected, found {count}"
            )
    lines = {p.name: max(len(c.source.splitlines()) for c in code_cells(p)) for p in numbered(root)}
    problems += [
        f"{name}: a code cell of {n} lines, at most 40 expected"
        for name, n in lines.items()
        if n > 40
    ]
    return problems


# ------------------------------------------------------------------ (d) outputs


def check_outputs(root: Path) -> list[str]:
    "Committed outputs: present, no errors, no noise, small."
    problems = []
    for path in every(root):
        if not path.exists():
            problems.append(f"{path.name} is missing")
            continue
        cells, kb = code_cells(path), path.stat().st_size / 1024
        outputs = [o for c in cells for o in c.outputs]
        if path.name != "index.ipynb" and not outputs:
            problems.append(f"{path.name} has no outputs: run `make notebooks`")
        problems += [
            f"{path.name}: error in the outputs: {o.ename}: {o.evalue}"
            for o in outputs
            if o.output_type == "error"
        ]
        problems += [
            f"{path.name}: stderr in the outputs: {o.text.strip()[:70]}"
            for o in outputs
            if o.get("name") == "stderr"
        ]
        if kb > KB_LIMIT:
            problems.append(f"{path.name} has {kb:.0f} kB, more than {KB_LIMIT}")
        elif kb > KB_WARN:
            print(f"   note: {path.name} has {kb:.0f} kB, more than {KB_WARN}")
    return problems


def check_executed(root: Path) -> list[str]:
    "The outputs were made by the code beside them: run top to bottom, after the last change."
    problems = []
    for path in filter(Path.exists, every(root)):
        notebook = nbformat.read(path, as_version=4)
        counts = [
            c.execution_count for c in notebook.cells if c.cell_type == "code" and c.source.strip()
        ]
        if notebook.metadata.get(KEY) != code_hash(notebook):
            problems.append(
                f"{path.name} was not run since its code changed: run `python tests/run_notebooks.py --in-place {path.stem}`"
            )
        elif counts != list(range(1, len(counts) + 1)):
            problems.append(
                f"{path.name}: its cells are not numbered 1 to {len(counts)}: run `make export`"
            )
    return problems


# ------------------------------------------------------------------ (e) README


def check_readme(root: Path) -> list[str]:
    index, target = root / "nbs" / "index.ipynb", root / "README.md"
    if not index.exists():
        return ["nbs/index.ipynb is missing"]
    text = readme(index)
    problems = (
        []
        if target.read_text(encoding="utf-8") == text
        else ["README.md differs from nbs/index.ipynb: run `make export`"]
    )
    links = re.findall(r'(?:\]\(|(?:src|href)=")((?!https?:|#|mailto:)[^)\s"#]+)', text)
    return problems + [
        f"README.md points at {link}, which is not there"
        for link in sorted(set(links))
        if not (root / link).exists()
    ]


CHECKS = {
    "modules are what the notebooks say": check_sync,
    "imports run forward": check_forward,
    "imports stay light": check_light,
    "parameters and exercises": check_form,
    "outputs are kept, clean and small": check_outputs,
    "every cell was run as it stands": check_executed,
    "README is what index makes": check_readme,
}


def main(root: Path = ROOT) -> int:
    failed = False
    for name, check in CHECKS.items():
        problems = check(root)
        failed |= bool(problems)
        print(
            f"{'FAILED' if problems else 'ok':7}{name}",
            *(f"   {p}" for p in problems),
            sep="\n",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
