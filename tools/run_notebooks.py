"""Run the notebooks in order with papermill and leave one folder with everything that they made.

python tools/run_notebooks.py --out runs/sample --html
python tools/run_notebooks.py --out runs/test --params params/fast.yaml --solutions --fresh --jobs 2
python tools/run_notebooks.py --out runs/sample --in-place 10_store 11_labels
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import nbformat
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from clean_notebooks import KEY, code_hash
from sslpdl_nb.core import atomic_path, environment, usable_cores, write_json

ROOT = Path(__file__).resolve().parent.parent
CALLER = Path.cwd()  # where the command was started; main changes to the notebooks' folder
SOLUTION = re.compile(r"^```python[ \t]*\n(.*?)^```", re.M | re.S)
DETAILS = re.compile(r"<details.*?</details>", re.S)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunError(Exception):
    "The run cannot go on; the text says why."


# ------------------------------------------------------------------ files


def read_notebook(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise RunError(f"{path} is not a notebook: {error}") from None


def prepare_folder(out: Path, fresh: bool):
    "Make the run folder; `fresh` empties it first, but only if an earlier run made it."
    if fresh and out.exists() and any(out.iterdir()):
        if not (out / "scores.json").exists():
            found = "but it holds no scores.json of an earlier run; remove it by hand"
            raise RunError(f"--fresh would empty {out}, {found}")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


# ------------------------------------------------------------------ notebooks


def find_notebooks(folder: Path, wanted: list[str]) -> list[Path]:
    "The numbered notebooks in order, then index; or those of `wanted`, in the same order."
    every = sorted(folder.glob("[0-9]*.ipynb")) + [
        p for p in [folder / "index.ipynb"] if p.exists()
    ]
    stems = {Path(w).name.removesuffix(".ipynb") for w in wanted}
    unknown = stems - {p.stem for p in every}
    if unknown or not every:
        raise RunError(f"no notebook {', '.join(sorted(unknown)) or '[0-9]*.ipynb'} in {folder}")
    return [p for p in every if not stems or p.stem in stems]


def declared(notebook) -> dict:
    "The names and default values in the cell tagged `parameters`."
    code = "\n".join(c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    return {
        n.targets[0].id: ast.literal_eval(n.value)
        for n in ast.parse(code).body
        if isinstance(n, ast.Assign)
    }


def read_parameters(path: Path | None) -> dict:
    "The values of a YAML file."
    if path is None:
        return {}
    if not path.is_file():
        raise RunError(f"no parameter file {path}")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise RunError(f"{path} must hold `name: value` lines")
    return values


def solutions(notebook) -> list[str]:
    "Every ```python block inside the <details> of the markdown cells."
    return [
        block.strip()
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for details in DETAILS.findall(cell.source)
        for block in SOLUTION.findall(details)
    ]


def with_solutions(notebook):
    "A copy of the notebook that ends with its solutions as code cells."
    notebook = copy.deepcopy(notebook)
    for k, code in enumerate(solutions(notebook), 1):
        cell = nbformat.v4.new_code_cell(
            f"# solution {k}\n{code}", metadata=dict(tags=["solution"])
        )
        notebook.cells.append(cell)
    return notebook


# ------------------------------------------------------------------ running


class Line:
    """One line of progress; on a terminal the seconds count while the notebook runs.

    Where several notebooks run side by side (`alone` is False), a line appears when its notebook
    is done.
    """

    def __init__(self, label: str, alone: bool = True):
        self.label, self.start, self.done = label, time.perf_counter(), threading.Event()
        self.alone, self.tty = alone, alone and sys.stdout.isatty()

    def __enter__(self):
        if self.alone:
            print(self.label, end="", flush=True)
        if self.tty:
            self.thread = threading.Thread(target=self.tick, daemon=True)
            self.thread.start()
        return self

    def tick(self):
        while not self.done.wait(1):
            print(f"\r{self.label}running {self.seconds:6.0f} s", end="", flush=True)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def __exit__(self, kind, *_):
        self.done.set()
        if self.tty:
            self.thread.join()
            print(f"\r{self.label}", end="")
        if kind is None:
            word = "ok"
        elif issubclass(kind, KeyboardInterrupt):
            word = "stopped"
        else:
            word = "FAILED"
        label = "" if self.alone else self.label
        print(f"{label}{word:7} {self.seconds:6.1f} s{'   ' if self.tty else ''}", flush=True)


def prepare_environment(nbs: Path, jobs: int = 1):
    """What a kernel needs to know; it starts in `nbs` and is that of this very Python.

    Kernels that run side by side share the cores.
    """
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of .venv before one in the home folder
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    # Threads that wait sleep, as in the commands: many times faster on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    cores = max(1, usable_cores() // jobs)
    if cores < (os.cpu_count() or 1):  # a container that is shown more than it may use
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    data = os.environ.get("SSLPDL_DATA")
    if data:  # relative to the caller -> valid in the kernel too
        os.environ["SSLPDL_DATA"] = data if os.path.isabs(data) else os.path.relpath(data, nbs)


def plain_newlines(notebook):
    "End printed lines with a newline only: the terminal of a `!` line puts a return before it."
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = output.text.replace("\r\n", "\n")


def execute(notebook, source: Path, target: Path, parameters: dict, timeout: int | None):
    "Execute a notebook here; the executed copy appears at `target` also when a cell fails."
    import papermill

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    given, running = (
        target.with_name(f".{target.stem}.{os.getpid()}.{word}.ipynb")
        for word in ("given", "running")
    )
    nbformat.write(notebook, given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(given),
                str(running),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                execution_timeout=timeout,
                extra_arguments=["--log-level=CRITICAL"],
            )
    finally:
        given.unlink()
        if running.exists():
            done = read_notebook(running)
            plain_newlines(done)
            done.metadata.papermill.update(input_path=source.name, output_path=target.name)
            nbformat.write(done, running)
            os.replace(running, target)


def first_line(source: str) -> str:
    "The first line of a cell that is code and neither directive nor blank."
    return next(
        (s for s in source.splitlines() if s.strip() and not s.lstrip().startswith("#|")), ""
    )


def explain(error: Exception, target: Path, keep: int = 12) -> str:
    "Which cell failed and why, in a few lines."
    where = "before the first cell"
    what = f"{type(error).__name__}: {ANSI.sub('', str(error)).strip()}"
    if hasattr(error, "cell_index"):  # papermill's own
        where = f"cell In [{error.exec_count}]: {first_line(error.source)}"
        text = [s for s in ANSI.sub("", "\n".join(error.traceback)).splitlines() if s.strip()]
        lines = ["    " + line for line in text[-keep:]]
        if len(text) > keep:
            lines.insert(0, "    ...")
        what = "\n".join([*lines, f"{error.ename}: {error.evalue}"])
    elif target.exists():  # a timeout or a dead kernel: the cell that was running
        begun = []
        for cell in read_notebook(target).cells:
            status = cell.metadata.get("papermill", {}).get("status", "pending")
            if cell.cell_type == "code" and status != "pending":
                begun.append(cell)
        if begun:
            where = f"cell: {first_line(begun[-1].source)}"
    what = "\n".join(what.splitlines()[: keep + 20])
    return f"\n{target.stem}, {where}\n\n{what[:6000]}\n\nexecuted copy: {shown(target)}"


def shown(path: Path) -> str:
    "A path as seen from where the command was started, where that is shorter."
    return min(str(path), os.path.relpath(path, CALLER), key=len)


def write_html(source: Path, nbs: Path):
    "An HTML copy with all figures inside; only formulas ask the network for a typesetter."
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True, require_js_url="", jquery_url="")
    notebook = read_notebook(source)
    notebook.cells = [
        c
        for c in notebook.cells
        if not (c.cell_type == "code" and c.source.startswith("#| default_exp"))
    ]
    resources = dict(metadata=dict(name=source.stem, path=str(nbs)))
    text, _ = exporter.from_notebook_node(notebook, resources)
    text = re.sub(r'(href="[\w./-]+)\.ipynb', r"\1.html", text).replace(
        '<script src=""></script>', ""
    )
    with atomic_path(source.with_suffix(".html")) as tmp:
        tmp.write_text(text, encoding="utf-8")


def keep_outputs(source: Path, executed: Path):
    "Put new outputs, and the hash of the code that made them, into the source notebook."
    notebook, new = read_notebook(source), read_notebook(executed)
    outputs = {c.id: c.outputs for c in new.cells if c.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs[cell.id]
    notebook.metadata[KEY] = code_hash(notebook)
    with atomic_path(source) as tmp:
        nbformat.write(notebook, tmp)
    subprocess.run(
        [sys.executable, Path(__file__).with_name("clean_notebooks.py"), source],
        cwd=ROOT,
        check=True,
    )


def front_scores(out: Path, nbs: Path):
    "The scores of a run, for index.ipynb: scores.json, or scores_course.json of the preset course."
    (nbs / "images").mkdir(exist_ok=True)
    if not (out / "verify.json").exists():
        return
    verify = json.loads((out / "verify.json").read_text(encoding="utf-8"))
    shown = dict(
        data=verify["data"],
        test_days=len(verify["test_days"]),
        situations=verify["situations"],
        differences=verify["differences"],
        csi={},
        bias={},
    )
    for edge, rows in verify["scores"].items():
        shown["csi"][edge] = {name: row["CSI"] for name, row in rows.items()}
        shown["bias"][edge] = {name: row["bias"] for name, row in rows.items()}
    if "counts_by_situation" in verify:  # from which all intervals follow
        shown["counts_by_situation"] = verify["counts_by_situation"]
    name = "scores" if verify["preset"] == "small" else f"scores_{verify['preset']}"
    write_json(nbs / "images" / f"{name}.json", shown)


def front_page(out: Path, nbs: Path, seconds: dict):
    "What index.ipynb shows: maps, learning curves, scores and the seconds of each notebook."
    front_scores(out, nbs)
    figures = (
        ("rainmap.png", "rainmap.png"),
        ("real_own.png", "rainmap_real.png"),
        ("figures/learning_curves.png", "learning_curves.png"),
    )
    for made, shown_as in figures:
        if (out / made).exists():
            with atomic_path(nbs / "images" / shown_as) as tmp:
                shutil.copy(out / made, tmp)
    path = nbs / "images" / "seconds.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new = before | {name: round(s) for name, s in seconds.items()}
    write_json(path, {name: new[name] for name in sorted(new) if (nbs / f"{name}.ipynb").exists()})


# ------------------------------------------------------------------ receipt


def receipt(parameters: dict) -> dict:
    "What is known before the run: seed, parameters, versions, hardware."
    env = environment()
    hardware = {k: env.pop(k) for k in ("machine", "cores", "gpu") if k in env}
    return dict(
        status="running",
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=parameters.get("seed"),
        parameters=parameters,
        versions=env,
        hardware=hardware,
        seconds={},
        total_seconds=0.0,
    )


WRITING = threading.Lock()  # one at a time writes scores.json


def finish(record: dict, out: Path, status: str):
    "Write scores.json, with the scores that the notebooks have left so far."
    with WRITING:
        total = sum(record["seconds"].values())
        record["status"], record["total_seconds"] = status, round(total, 1)
        if (out / "verify.json").exists():
            try:
                record["verify"] = json.loads((out / "verify.json").read_text(encoding="utf-8"))
            except ValueError as error:
                raise RunError(f"{shown(out / 'verify.json')} is not JSON: {error}") from None
        write_json(out / "scores.json", record)


# ------------------------------------------------------------------ the command


def check_values(values: dict, known: dict, file: Path | None):
    "Refuse parameters that no notebook declares."
    unknown = ", ".join(sorted(set(values) - set(known)))
    if unknown:
        declares = ", ".join(sorted(known))
        raise RunError(f"{file} sets {unknown}, but the notebooks declare only {declares}")


def run_one(path: Path, label: str, args, record: dict, values: dict) -> int:
    "Run one notebook and write down how long it took; exit code."
    nbs, out = args.nbs, args.out
    target, failure = out / path.name, None
    notebook = read_notebook(path)
    names = declared(notebook)
    if args.solutions:
        notebook = with_solutions(notebook)
    finish(record, out, f"running {path.stem}")
    try:
        with Line(label, args.jobs == 1) as line:
            given = {name: value for name, value in values.items() if name in names}
            execute(notebook, path, target, given, args.timeout)
            if args.in_place:
                keep_outputs(path, target)
    except (KeyboardInterrupt, Exception) as error:
        failure = error
    record["seconds"][path.stem] = round(line.seconds, 1)
    if isinstance(failure, KeyboardInterrupt):
        finish(record, out, f"interrupted in {path.stem}")
        print(f"\ninterrupted; executed copy: {shown(target)}", file=sys.stderr)
        return 130
    if failure is not None:
        finish(record, out, f"failed in {path.stem}")
        print(explain(failure, target), file=sys.stderr)
        return 1
    if args.html:
        write_html(target, nbs)
    return 0


def uses_checkpoints(path: Path) -> bool:
    "Whether a notebook reads or writes checkpoints, which it shares with others in the folder."
    cells = read_notebook(path).cells
    return any(".safetensors" in c.source for c in cells if c.cell_type == "code")


def in_turn(paths: list[Path]) -> dict:
    "Notebook -> those that must be done before it."
    before, chain = {}, []
    for path in paths:
        before[path] = []
        if path.stem == "index":
            before[path] = [p for p in paths if p != path]
        elif uses_checkpoints(path):
            before[path] = chain[-1:]
            chain.append(path)
    return before


def run_side_by_side(labels: dict, args, record: dict, values: dict) -> int:
    "Run notebooks (path -> label), `args.jobs` at a time, up to the first failure; exit code."
    before, waiting, running, done, code = in_turn(list(labels)), list(labels), {}, set(), 0
    pool = ThreadPoolExecutor(args.jobs)
    try:
        while running or (waiting and not code):
            for path in list(waiting):
                free = len(running) < args.jobs and not code
                if free and done.issuperset(before[path]):
                    waiting.remove(path)
                    job = pool.submit(run_one, path, labels[path], args, record, values)
                    running[job] = path
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                done.add(running.pop(job))
                code = code or job.result()
    except KeyboardInterrupt:
        out = args.out
        finish(record, out, f"interrupted in {', '.join(p.stem for p in running.values())}")
        for path in out.glob(f".*.{os.getpid()}.*.ipynb"):
            path.unlink()
        print(f"\ninterrupted; results so far: {shown(out)}", file=sys.stderr, flush=True)
        os._exit(130)  # the threads would wait for their kernels, which end without their parent
    pool.shutdown()
    return code


@contextmanager
def working_folder(folder: Path):
    """The whole process works in a folder, where kernels start too.

    papermill's `cwd` changes the folder around each notebook, so that with several threads one
    that ends moves the kernel of another that begins.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_in_turn(labels: dict, args, record: dict, values: dict) -> int:
    "Run notebooks (path -> label) one after another, up to the first failure; exit code."
    for path, label in labels.items():
        if args.in_place and path.stem == "index" and len(labels) > 1:
            front_page(args.out, args.nbs, record["seconds"])
        code = run_one(path, label, args, record, values)
        if code:
            return code
    return 0


def run(args) -> int:
    "Run the notebooks, up to the first failure; exit code."
    if args.in_place and args.params:
        what = "--in-place keeps what the parameters in the notebooks give"
        raise RunError(f"{what}; it takes no --params")
    if args.jobs < 1 or (args.in_place and args.jobs > 1):
        what = "--jobs: expected 1 or more, and 1 with --in-place, whose seconds are kept"
        raise RunError(f"{what}; found {args.jobs}")
    args.nbs, args.out = nbs, out = args.nbs.resolve(), args.out.resolve()
    paths = find_notebooks(nbs, args.notebooks)
    known = {}
    for path in paths:
        known = declared(read_notebook(path)) | known
    values = read_parameters(args.params)
    check_values(values, known, args.params)
    values["out_dir"] = Path(os.path.relpath(out, nbs)).as_posix()
    prepare_folder(out, args.fresh)
    prepare_environment(nbs, args.jobs)
    record = receipt({**known, **values})
    width = max(len(p.stem) for p in paths)
    labels = {p: f"[{k:2}/{len(paths)}] {p.stem:{width}}   " for k, p in enumerate(paths, 1)}
    way = run_side_by_side if args.jobs > 1 else run_in_turn
    begin = time.monotonic()
    with working_folder(nbs):
        code = way(labels, args, record, values)
    if code:
        return code
    finish(record, out, "complete")
    if args.front_page:
        front_scores(out, nbs)
    count = f"{len(paths)} notebook{'s' * (len(paths) > 1)}"
    print(f"{count} in {time.monotonic() - begin:.0f} s; results in {shown(out)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "notebooks",
        nargs="*",
        metavar="NOTEBOOK",
        help="only these, by name or path (default: all)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "runs" / "sample",
        help="folder for everything that the run makes",
    )
    parser.add_argument("--params", type=Path, help="YAML file with notebook parameters")
    parser.add_argument(
        "--html", action="store_true", help="also write an HTML copy of each notebook"
    )
    parser.add_argument(
        "--solutions", action="store_true", help="also run the solutions of the exercises"
    )
    parser.add_argument(
        "--in-place", action="store_true", help="keep the outputs in the notebooks themselves"
    )
    parser.add_argument(
        "--front-page", action="store_true", help="give the scores to nbs/images, for index.ipynb"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="empty the folder of an earlier run first"
    )
    parser.add_argument("--jobs", type=int, default=1, help="notebooks side by side")
    parser.add_argument("--timeout", type=int, help="longest time for one cell, in seconds")
    parser.add_argument("--nbs", type=Path, default=ROOT / "nbs", help="folder of the notebooks")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except RunError as error:
        print(f"run_notebooks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
