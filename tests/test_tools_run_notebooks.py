"The notebook runner on a folder of tiny notebooks."

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import run_notebooks as runner

PARAMETERS = """seed = 0
fast = False
preset = "small"
data_dir = "../data_samples/tiny"
out_dir = "../runs/sample"
"""


def notebook(path, *cells, parameters=PARAMETERS):
    "Write a notebook: text that starts with `md:` is markdown, all else is code."
    nb = nbformat.v4.new_notebook(
        metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    )
    if parameters:
        nb.cells.append(nbformat.v4.new_code_cell(parameters, metadata=dict(tags=["parameters"])))
    for text in cells:
        nb.cells.append(
            nbformat.v4.new_markdown_cell(text[3:])
            if text.startswith("md:")
            else nbformat.v4.new_code_cell(text)
        )
    nbformat.write(nb, path)


@pytest.fixture
def nbs(tmp_path):
    folder = tmp_path / "nbs"
    folder.mkdir()
    return folder


def run(nbs, *options):
    return runner.main(["--nbs", str(nbs), "--out", str(nbs.parent / "out"), *map(str, options)])


def texts(path):
    "What the cells of an executed notebook printed."
    return "".join(
        o.get("text", "")
        for c in nbformat.read(path, 4).cells
        if c.cell_type == "code"
        for o in c.outputs
    )


DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000000200014898"
    "a4d10000000049454e44ae426082"
)
SOLVED = """md:### Exercises

**1.** What is x plus one?

<details><summary>Solution</summary>

```python
y = x + 1
print("solved", y)
```
Not this one:
```
raise SystemExit
```
</details>

```python
raise RuntimeError("not a solution")
```
"""


def test_order_parameters_solutions_html_and_receipt(nbs, capsys):
    notebook(
        nbs / "01_b.ipynb", "import os; print(seed, fast, out_dir, os.getcwd())", "x = 2", SOLVED
    )
    notebook(
        nbs / "00_a.ipynb",
        "import sys; print(sys.executable)",
        'open(out_dir + "/verify.json", "w").write(\'{"csi": 0.5}\');',
    )
    (nbs / "images").mkdir()
    (nbs / "images" / "dot.png").write_bytes(DOT)
    notebook(
        nbs / "index.ipynb",
        "md:# front page, [a](00_a.ipynb) ![dot](images/dot.png)",
        parameters=None,
    )
    params = nbs.parent / "p.yaml"
    params.write_text("fast: true\nseed: 3\n")
    assert run(nbs, "--params", params, "--solutions", "--html") == 0
    out = nbs.parent / "out"
    lines = capsys.readouterr().out.splitlines()
    assert [s.split()[2:4] for s in lines[:3]] == [["00_a", "ok"], ["01_b", "ok"], ["index", "ok"]]
    assert texts(out / "01_b.ipynb") == f"3 True ../out {nbs}\nsolved 3\n"
    assert texts(out / "00_a.ipynb").strip() == sys.executable
    html = (out / "index.html").read_text()
    assert "00_a.html" in html and "data:image/png;base64" in html
    assert "require.min.js" not in html and "dot.png" not in html
    scores = json.loads((out / "scores.json").read_text())
    assert scores["status"] == "complete"
    assert scores["seed"] == 3 and scores["parameters"]["fast"] is True
    assert scores["verify"] == {"csi": 0.5} and list(scores["seconds"]) == ["00_a", "01_b", "index"]
    assert {"torch", "python"} <= set(scores["versions"]) and "cores" in scores["hardware"]
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_first_failure_stops_and_names_the_cell(nbs, capsys):
    notebook(nbs / "00_a.ipynb", "#| exports\nvalue = 1 / 0  # here", "print('never')")
    notebook(nbs / "01_b.ipynb", "print('never')")
    assert run(nbs) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out and "01_b" not in out
    assert "00_a, cell In [3]: value = 1 / 0  # here" in err
    assert "ZeroDivisionError: division by zero" in err
    assert len(err.splitlines()) < 30
    assert (nbs.parent / "out" / "00_a.ipynb").exists()
    scores = json.loads((nbs.parent / "out" / "scores.json").read_text())
    assert scores["status"] == "failed in 00_a" and list(scores["seconds"]) == ["00_a"]


def test_a_wrong_solution_fails(nbs, capsys):
    notebook(nbs / "00_a.ipynb", SOLVED)
    assert run(nbs) == 0
    assert run(nbs, "--solutions") == 1
    assert "# solution 1" in capsys.readouterr().err


def test_a_cell_that_takes_too_long_and_a_kernel_that_dies(nbs, capsys):
    notebook(nbs / "00_a.ipynb", "import time", "time.sleep(60)")
    assert run(nbs, "--timeout", 1) == 1
    assert "time.sleep(60)" in capsys.readouterr().err
    notebook(nbs / "00_a.ipynb", "import os", "os._exit(3)")
    assert run(nbs) == 1
    assert "os._exit(3)" in capsys.readouterr().err


@pytest.mark.parametrize("text, word", [("batch_sise: 3", "batch_sise"), ("- 1", "name: value")])
def test_bad_parameter_files(nbs, capsys, text, word):
    notebook(nbs / "00_a.ipynb", "print(1)")
    params = nbs.parent / "p.yaml"
    params.write_text(text)
    assert run(nbs, "--params", params) == 1
    assert word in capsys.readouterr().err
    assert run(nbs, "--params", nbs.parent / "none.yaml") == 1


def test_only_names_that_a_notebook_declares(nbs):
    notebook(nbs / "00_a.ipynb", "print(seed, 'fast' in globals())", parameters="seed = 0")
    notebook(nbs / "01_b.ipynb", "print(fast)", parameters="fast = False")
    params = nbs.parent / "p.yaml"
    params.write_text("fast: true")
    assert run(nbs, "--params", params) == 0
    assert texts(nbs.parent / "out" / "00_a.ipynb") == "0 False\n"
    assert texts(nbs.parent / "out" / "01_b.ipynb") == "True\n"


def test_choice_of_notebooks(nbs, capsys):
    for name in ("00_a", "01_b", "02_c"):
        notebook(nbs / f"{name}.ipynb", "print(1)")
    assert run(nbs, "02_c", nbs / "00_a.ipynb") == 0
    out = capsys.readouterr().out
    assert "00_a" in out and "02_c" in out and "01_b" not in out
    assert run(nbs, "07_none") == 1
    assert "07_none" in capsys.readouterr().err


def test_in_place_keeps_outputs_and_counts_and_nothing_else(nbs):
    path = nbs / "00_a.ipynb"
    notebook(path, "md:# a", "print('new')", SOLVED, "seed")
    assert run(nbs, "--in-place") == 0
    first = path.read_bytes()
    cells = nbformat.read(path, 4).cells
    assert len(cells) == 5
    assert "papermill" not in first.decode() and "injected" not in first.decode()
    assert cells[2].outputs[0].text == "new\n" and cells[0].metadata.tags == ["parameters"]
    assert [c.execution_count for c in cells if c.cell_type == "code"] == [1, 2, 3]
    assert cells[4].outputs[0].execution_count == 3
    assert run(nbs, "--in-place") == 0
    assert path.read_bytes() == first


def test_printed_lines_end_with_a_newline_only(nbs):
    path = nbs / "00_a.ipynb"
    notebook(path, "!printf 'one\\ntwo\\n'", "print('a 1\\ra 2', end='\\r\\n')")
    assert run(nbs, "--in-place") == 0
    assert texts(path) == texts(nbs.parent / "out" / path.name) == "one\ntwo\na 1\ra 2\n"


def test_in_place_takes_no_other_parameters(nbs, capsys):
    notebook(nbs / "00_a.ipynb", "seed")
    (nbs.parent / "p.yaml").write_text("seed: 3")
    before = (nbs / "00_a.ipynb").read_bytes()
    assert run(nbs, "--in-place", "--params", nbs.parent / "p.yaml") == 1
    assert "--params" in capsys.readouterr().err and (nbs / "00_a.ipynb").read_bytes() == before


def test_in_place_feeds_the_front_page(nbs):
    verify = dict(
        data="simulated",
        preset="small",
        test_days=["a", "b"],
        situations=1,
        differences={},
        scores={"0.1": {"raw forecast": dict(CSI=0.3, bias=2.0)}},
    )
    notebook(
        nbs / "00_a.ipynb",
        "for f in ('rainmap.png', 'real_own.png'): open(out_dir + '/' + f, 'w').write(f)",
        f"import json; json.dump({verify}, open(out_dir + '/verify.json', 'w'))",
    )
    notebook(
        nbs / "index.ipynb",
        "import json; print(list(json.load(open('images/seconds.json'))))",
        parameters=None,
    )
    assert run(nbs, "--in-place") == 0
    assert (nbs / "images" / "rainmap.png").read_text() == "rainmap.png"
    assert (nbs / "images" / "rainmap_real.png").read_text() == "real_own.png"
    scores = json.loads((nbs / "images" / "scores.json").read_text())
    assert scores == dict(
        data="simulated",
        test_days=2,
        situations=1,
        differences={},
        csi={"0.1": {"raw forecast": 0.3}},
        bias={"0.1": {"raw forecast": 2.0}},
    )
    assert nbformat.read(nbs / "index.ipynb", 4).cells[0].outputs[0].text == "['00_a']\n"
    out = nbs.parent / "out"
    scores["counts_by_situation"] = {"0.1": {"raw forecast": [[1, 2, 3, 4]]}}
    verify |= dict(preset="course", counts_by_situation=scores["counts_by_situation"])
    (out / "verify.json").write_text(json.dumps(verify))
    notebook(nbs / "00_a.ipynb", "print(1)")
    assert run(nbs, "--front-page", "00_a") == 0
    assert json.loads((nbs / "images" / "scores_course.json").read_text()) == scores


def test_fresh_empties_only_its_own_folder(nbs, capsys):
    notebook(nbs / "00_a.ipynb", "print(1)")
    out = nbs.parent / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert run(nbs, "--fresh") == 1 and (out / "mine.txt").exists()
    assert run(nbs) == 0
    assert run(nbs, "--fresh") == 0 and not (out / "mine.txt").exists()


def test_interrupt_is_clean(nbs):
    notebook(
        nbs / "00_a.ipynb",
        "import os; open(out_dir + '/pid', 'w').write(str(os.getpid()))",
        "import time; time.sleep(60)",
    )
    out = nbs.parent / "out"
    process = subprocess.Popen(
        [sys.executable, runner.__file__, "--nbs", nbs, "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a job in the background ignores it
    while not (out / "pid").exists() or not (out / "pid").read_text():
        time.sleep(0.1)
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped" in stdout
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert json.loads((out / "scores.json").read_text())["status"] == "interrupted in 00_a"
    assert not Path(f"/proc/{(out / 'pid').read_text()}").exists()


def test_threads_of_the_kernels(monkeypatch, tmp_path):
    "Those that wait sleep, and a container gets as many as it may use; the user's own word counts."
    monkeypatch.setattr(runner.os, "environ", {"PATH": ""})
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(runner, "usable_cores", lambda: 64)
    runner.prepare_environment(tmp_path)
    assert runner.os.environ["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_NUM_THREADS" not in runner.os.environ
    monkeypatch.setattr(runner, "usable_cores", lambda: 2)
    runner.prepare_environment(tmp_path)
    assert runner.os.environ["OMP_NUM_THREADS"] == "2"
    runner.os.environ |= dict(OMP_NUM_THREADS="5", OMP_WAIT_POLICY="active")
    runner.prepare_environment(tmp_path)
    assert runner.os.environ["OMP_NUM_THREADS"] == "5"
    assert runner.os.environ["OMP_WAIT_POLICY"] == "active"


# ------------------------------------------------------------------ side by side

MEET = """
import time
from pathlib import Path
Path(out_dir, "{me}").touch()
for _ in range(300):
    if Path(out_dir, "{other}").exists():
        break
    time.sleep(0.1)
else:
    raise TimeoutError("nobody came")
"""


def test_two_notebooks_run_at_the_same_time(nbs, capsys):
    notebook(nbs / "00_a.ipynb", MEET.format(me="a", other="b"))
    notebook(nbs / "01_b.ipynb", MEET.format(me="b", other="a"))
    notebook(nbs / "index.ipynb", "import os; print(sorted(os.listdir(out_dir)))")
    assert run(nbs, "--jobs", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line[:10] for line in lines[:2]) == ["[ 1/3] 00_", "[ 2/3] 01_"]
    assert lines[2].startswith("[ 3/3] index") and lines[3].startswith("3 notebooks in")
    done = texts(nbs.parent / "out" / "index.ipynb")
    assert "'00_a.ipynb'" in done and "'01_b.ipynb'" in done, "the front page comes last"
    assert json.loads((nbs.parent / "out" / "scores.json").read_text())["status"] == "complete"


def test_every_kernel_starts_in_the_folder_of_the_notebooks(nbs, monkeypatch):
    monkeypatch.chdir(nbs.parent)
    for k in range(8):
        notebook(nbs / f"{k:02}_a.ipynb", "import os; print(os.path.basename(os.getcwd()))")
    assert run(nbs, "--jobs", 4) == 0
    seen = {texts(nbs.parent / "out" / f"{k:02}_a.ipynb").strip() for k in range(8)}
    assert seen == {"nbs"}
    assert Path.cwd() == nbs.parent, "the caller's folder is as it was"


def test_notebooks_that_share_checkpoints_run_in_order(nbs):
    notebook(
        nbs / "00_a.ipynb", "import time; time.sleep(1)", "open(out_dir + '/a.safetensors', 'w')"
    )
    notebook(nbs / "01_b.ipynb", "print('on my own')")
    notebook(nbs / "02_c.ipynb", "open(out_dir + '/a.safetensors')")
    assert run(nbs, "--jobs", 3) == 0


def test_a_failure_side_by_side_stops_what_has_not_begun(nbs, capsys):
    notebook(nbs / "00_a.ipynb", "1 / 0")
    notebook(nbs / "01_b.ipynb", "import time; time.sleep(2)")
    notebook(nbs / "02_c.ipynb", "print('never')")
    assert run(nbs, "--jobs", 2) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out and "02_c" not in out and "ZeroDivisionError" in err
    assert (nbs.parent / "out" / "01_b.ipynb").exists()


def test_an_interrupt_side_by_side_ends_all_kernels(nbs):
    for name in ("00_a", "01_b"):
        text = f"import os; open(out_dir + '/pid{name}', 'w').write(str(os.getpid()))"
        notebook(nbs / f"{name}.ipynb", text, "import time; time.sleep(60)")
    out = nbs.parent / "out"
    process = subprocess.Popen(
        [sys.executable, runner.__file__, "--nbs", nbs, "--out", out, "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    files = [out / "pid00_a", out / "pid01_b"]
    while not all(file.exists() and file.read_text() for file in files):
        time.sleep(0.1)
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    status = json.loads((out / "scores.json").read_text())["status"]
    assert status == "interrupted in 00_a, 01_b"
    assert not list(out.glob(".*.ipynb"))
    for _ in range(200):
        if not any(Path(f"/proc/{file.read_text()}").exists() for file in files):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("a kernel lives on")


def test_seconds_are_kept_only_where_one_runs_alone(nbs, capsys):
    notebook(nbs / "00_a.ipynb", "print(1)")
    assert run(nbs, "--in-place", "--jobs", 2) == 1
    assert "--jobs" in capsys.readouterr().err
    assert run(nbs, "--jobs", 0) == 1
