"Studies: files, records, runs that are stopped, workers, tables."

import json
import lzma
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from study_files import write_store, write_study

from sslpdl_nb.core import DataError, write_json
from sslpdl_nb.experiments import runner
from sslpdl_nb.experiments.runner import (
    Study,
    pretrained,
    results,
    run,
    run_cell,
    status,
    summary,
    table,
)
from sslpdl_nb.experiments.scores import READINGS, Result

NUMBERS = iter(range(1000))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "toy.nc")


@pytest.fixture
def place(tmp_path, store, monkeypatch):
    "A folder with an archive and a module of baselines of its own name."
    (tmp_path / "data").mkdir()
    os.link(store, tmp_path / "data" / "toy.nc")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def trial(place):
    "Makes a study whose methods are in a module; its Study."

    def make(fast=False, **parts):
        module = f"rivals{next(NUMBERS)}"
        text = json.dumps(parts).replace("MINE", module)
        return Study.load(write_study(place, module=module, **json.loads(text)), fast)

    return make


def fits(study) -> list:
    "What the baseline `Counted` has written down."
    file = study.root / "fits"
    return file.read_text().splitlines() if file.exists() else []


# ------------------------------------------------------------------ the file


def test_cells_are_all_combinations_seed_after_seed(trial):
    factors = dict(method=["raw", "MINE:Counted"], atmospheres=[1, 3])
    listed = [dict(method="raw"), dict(method="share", factors=dict(atmospheres=[2]), seeds=[5])]
    study = trial(factors=factors, cells=listed, seeds=[0, 1])
    cells = study.cells()
    assert len(cells) == 4 * 2 + 2 + 1
    assert [c["seed"] for c in cells] == sorted(c["seed"] for c in cells)
    assert all(c["archive"] == "toy" and c["image_size"] == [32, 32] for c in cells)
    assert cells[-1] == dict(
        archive="toy", image_size=[32, 32], method="share", atmospheres=2, seed=5
    )
    twice = trial(cells=[dict(method="raw"), dict(method="raw")])
    assert len(twice.cells()) == 1


def test_a_budget_is_for_those_who_know_it_and_a_method_has_options_of_its_own(trial):
    study = trial(
        budget=dict(steps=9, finetune_batch=2),
        methods=dict(unet=dict(lr=0.1)),
        factors=dict(method=["raw", "unet"]),
    )
    raw, unet = study.cells()
    assert "steps" not in raw and "lr" not in raw and raw["finetune_batch"] == 2
    assert unet["steps"] == 9 and unet["lr"] == 0.1
    own = trial(budget=dict(steps=9), cells=[dict(method="unet", steps=1)]).cells()[0]
    assert own["steps"] == 1


def test_fast_replaces_lists_and_changes_dictionaries(trial):
    small = dict(base=dict(atmospheres=1), factors=dict(method=["raw"]), seeds=[4])
    study = trial(fast=True, factors=dict(method=["raw", "share"]), seeds=[0, 1])
    assert len(study.cells()) == 4
    path = write_study(study.root, factors=dict(method=["raw", "share"]), fast=small)
    cells = Study.load(path, fast=True).cells()
    assert [(c["method"], c["atmospheres"], c["seed"]) for c in cells] == [("raw", 1, 4)]
    assert cells[0]["image_size"] == [32, 32]
    assert Study.load(path, fast=True).folder != Study.load(path).folder


@pytest.mark.parametrize(
    "parts, words",
    [
        (dict(factors=dict(method=["oracle"])), "oracle"),
        (dict(factors=dict(method=["raw"], stepz=[1])), "factor or option.*stepz"),
        (dict(factors=dict(method=["raw"], steps=[1])), "options of raw .*steps"),
        (dict(factors=dict(method=["raw"], archive=["moon"])), "archive.*toy.*moon"),
        (dict(factors=dict(method=["raw"], test_archive=["moon"])), "test_archive.*moon"),
        (dict(factors=dict(method="raw")), "factor method: expected a list"),
        (dict(factors=dict(method=[])), "factor method"),
        (dict(cells=["raw"]), "a cell: base: expected a dict"),
        (dict(factors=[1]), "factors: expected a dict"),
        (dict(seeds=3, factors=dict(method=["raw"])), "seeds: expected a list"),
        (dict(seeds=["x"], factors=dict(method=["raw"])), "seed: expected a whole number"),
        (dict(colour="red"), "part: expected one of .*colour"),
        (dict(fast=dict(colour="red")), "fast: part.*colour"),
        (dict(factors=dict(alpha=[0.1])), "a method, found none"),
        (dict(factors=dict(method=["unet"], finetune_batch=["x"])), "finetune_batch"),
        (dict(factors=dict(method=["unet"], alpha=[7])), "alpha"),
        (dict(factors=dict(method=["raw"], pretrain=[dict(seed=1)])), "pretrain: method"),
        (dict(factors=dict(method=["internimage"], pretrain=[dict(x=1)])), "pretrain: options"),
        (dict(factors=dict(method=["unet"], pretrain=[dict(function="json:no")])), "json:no"),
    ],
)
def test_what_is_wrong_with_a_study_is_said_before_it_runs(place, parts, words):
    path = write_study(place, **parts)
    with pytest.raises(DataError, match=words) as error:
        Study.load(path).cells()
    text = str(error.value)
    assert str(path) in text and "expected" in text and "found" in text
    assert not (place / "runs").exists()


@pytest.mark.parametrize("text", ["title: [", "- a\n- b\n", "", "title: x\n", "\x00"])
def test_files_that_are_no_study(place, text):
    path = place / "x.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="x.yaml.*expected"):
        Study.load(path)


def test_a_missing_study_lists_those_that_there_are(place):
    write_study(place, name="first")
    with pytest.raises(DataError, match="first"):
        Study.load(place / "experiments" / "second.yaml")


def test_a_missing_archive_comes_with_its_command(trial):
    archive = dict(toy="data/toy.nc", far=dict(folder="runs/data/far", seed=3, size="tiny"))
    study = trial(archive=archive, factors=dict(method=["raw"]))
    command = "sslpdl simulate --size tiny --out runs/data/far --seed 3 --members 16"
    for task in (run, status):
        with pytest.raises(DataError, match=command):
            task(study)
    study = trial(archive=dict(toy="runs/data/study"), factors=dict(method=["raw"]))
    with pytest.raises(DataError, match="--size study --out runs/data/study --seed 0 --members 16"):
        run(study)


def test_another_grid_is_refused_before_anything_is_written(trial):
    study = trial(base=dict(image_size=[16, 16]), factors=dict(method=["raw"]))
    with pytest.raises(DataError, match="rows and columns.*16, 16.*32, 32"):
        run(study)
    assert not study.folder.exists()


# ------------------------------------------------------------------ records


def test_a_record_holds_all_that_was_asked_of_it(trial):
    study = trial(factors=dict(method=["MINE:Counted"], power=[2]))
    rows = run(study)
    record = json.loads(rows[0]["path"].read_text())
    names = {"cell", "archive", "code", "name", "commit", "versions", "threads", "result"}
    names |= {"parameters", "fit_seconds", "predict_seconds", "ms", "seconds", "memory_mb"}
    assert names <= set(record)
    assert record["code"]["options"]["power"] == 2 and record["archive"]["toy"]["samples"] == 120
    result = Result.from_dict(record["result"])
    assert len(result.atmospheres) == 6 and tuple(result.confusion) == READINGS
    assert len(record["scores"]) == 2 * len(READINGS)
    assert 0 < record["valid_log_loss"] < np.log(3) and record["best_step"] is None
    assert "NaN" not in rows[0]["path"].read_text()


def test_what_is_done_is_not_done_again(trial):
    study = trial(factors=dict(method=["MINE:Counted"], atmospheres=[1, 3]), seeds=[0, 1])
    assert {row["state"] for row in run(study)} == {"finished"}
    assert len(fits(study)) == 4
    run(study)
    assert len(fits(study)) == 4
    text = study.path.read_text().replace("- 3\n", "- 3\n  - 5\n")
    study.path.write_text(text)
    run(Study.load(study.path))
    assert len(fits(study)) == 6, "only the two new cells were run"


def test_two_methods_learn_from_the_same_weather(trial):
    factors = dict(method=["MINE:Counted"], power=[1, 2], atmospheres=[1, 2])
    study = trial(factors=factors, seeds=[0, 1])
    run(study)
    lines = fits(study)
    assert len(lines) == 8 and len(set(lines)) == 4


def test_a_cell_by_itself(place, store):
    cell = dict(method="raw", archive="toy", seed=0, image_size=[32, 32])
    record = run_cell(cell, store, place / "records")
    assert run_cell(cell, {"toy": store}, place / "records") == json.loads(json.dumps(record))
    assert [p.suffix for p in (place / "records").iterdir()] == [".json"]


def test_only_some_cells(trial):
    study = trial(factors=dict(method=["raw", "MINE:Counted"]), seeds=[0, 1])
    assert len(run(study, only=dict(method="raw", seed=1))) == 1
    assert status(study).startswith("trial: 4 cells, 1 finished, 3 missing")
    with pytest.raises(DataError, match="none of 4"):
        run(study, only=dict(method="share"))


def test_a_cell_that_fails_does_not_stop_the_others(trial):
    study = trial(cells=[dict(method="MINE:Broken"), dict(method="raw")])
    with pytest.raises(DataError, match="1 failed.*error: ValueError: a broken baseline"):
        run(study)
    text = status(study)
    assert "1 finished, 1 failed" in text and "Broken seed=0: ValueError: a broken base" in text
    (study.root / "mended").touch()
    run(study)
    assert "2 finished" in status(study)
    assert not list(study.folder.glob("*.error")) + list(study.folder.glob(".*"))


def test_an_interrupt_is_no_failure(trial):
    study = trial(factors=dict(method=["MINE:Interrupted"]))
    with pytest.raises(KeyboardInterrupt):
        run(study)
    assert "1 missing" in status(study)


def test_a_damaged_record_is_named(trial):
    study = trial(factors=dict(method=["raw"]))
    path = run(study)[0]["path"]
    path.write_text(path.read_text()[:50])
    for task in (run, status, table):
        with pytest.raises(DataError, match=f"{path.name}.*a record of a cell"):
            task(study)


def test_a_cell_that_another_process_runs_is_left_to_it(trial):
    study = trial(factors=dict(method=["raw"]))
    path = runner._survey(study)[0]["path"]
    lock = path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True)
    with FileLock(lock):
        lock.write_text(f"process {os.getpid()} on {runner.platform.node()} since today")
        assert "1 running" in status(study)
        run(study)
    assert not path.exists()
    lock.write_text(f"process {2**22 + 1} on {runner.platform.node()} since today")
    assert "1 missing" in status(study), "its process is dead"
    run(study)
    assert path.exists() and not lock.exists()


# ------------------------------------------------------------------ code that changes


def with_older_code(study):
    "Run a study, and make its records look as if the code of one module had changed since."
    for row in run(study):
        record = json.loads(row["path"].read_text())
        row["path"].unlink()
        record["code"]["modules"]["store"] = "0lder"
        record["code"]["hash"] = "0ld0c0de"
        record["name"] = record["name"].split("-")[0] + "-0ld0c0de"
        write_json(row["path"].with_name(record["name"] + ".json"), record)


def test_records_of_other_code_are_refused_repeated_or_kept(trial, capsys):
    study = trial(factors=dict(method=["MINE:Counted"]), seeds=[0, 1])
    with_older_code(study)
    old = sorted(study.folder.glob("*.json"))
    with pytest.raises(DataError) as error:
        run(study)
    text = str(error.value)
    assert "0ld0c0de.json (and 1 others): expected code " in text
    assert "found code 0ld0c0de; changed since: store; --again" in text and "--keep" in text
    assert sorted(study.folder.glob("*.json")) == old and "2 changed" in status(study)
    capsys.readouterr()
    table(study)
    assert "2 of 2 records were made by other code" in capsys.readouterr().out
    run(study, keep=True)
    run(study)
    assert len(fits(study)) == 2 and "2 finished" in status(study)
    capsys.readouterr()
    table(study)
    assert "other code" not in capsys.readouterr().out


def test_records_of_other_code_are_repeated(trial):
    study = trial(factors=dict(method=["MINE:Counted"]), seeds=[0, 1])
    with_older_code(study)
    run(study, again=True)
    assert len(fits(study)) == 4 and "2 finished" in status(study)
    assert not list(study.folder.glob("*0ld*"))


def test_another_archive_in_the_same_folder_is_refused(trial, place):
    study = trial(factors=dict(method=["raw"]))
    run(study)
    (place / "data" / "toy.nc").unlink()
    write_store(place / "data" / "toy.nc", seed=3)
    with pytest.raises(DataError, match="'seed': 3.*'seed': 0"):
        run(study)


# ------------------------------------------------------------------ processes


def test_a_killed_training_goes_on_to_the_same_numbers(trial):
    options = dict(method="unet", steps=16, eval_every=1, finetune_batch=2, atmospheres=3)
    study = trial(cells=[options])
    command = [sys.executable, "-m", "sslpdl_nb.cli", "experiment", "run", str(study.path)]
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    process = subprocess.Popen(command, env=environment)
    states = []
    while not states and process.poll() is None:
        states = list(study.folder.glob("*.state"))
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert states and not list(study.folder.glob("*.json")) and "1 missing" in status(study)
    before = torch.load(states[0], weights_only=True)["step"]
    assert 0 < before < 16
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        went_on = run(study)[0]["record"]
        archive = study.root / "data" / "toy.nc"
        at_once = run_cell(study.cells()[0], archive, study.root / "at_once")
    finally:
        torch.set_num_threads(threads)
    assert went_on["result"] == json.loads(json.dumps(at_once["result"]))
    assert went_on["history"] == at_once["history"] and len(went_on["history"]) == 16
    assert not list(study.folder.glob("*.state"))


def test_two_local_workers_run_side_by_side_in_one_thread_each(trial):
    study = trial(factors=dict(method=["MINE:Meeting"]), seeds=[0, 1])
    records = [row["record"] for row in run(study, workers=2)]
    assert len({record["process"] for record in records}) == 2
    assert [record["threads"] for record in records] == [1, 1]
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"]


def test_a_worker_that_is_killed_is_reported(trial):
    study = trial(factors=dict(method=["MINE:Killed"]))
    with pytest.raises(DataError, match="1 that ended early.*run again to go on"):
        run(study, executor="local")
    assert "1 missing" in status(study)


def test_the_executor_for_debugging(trial):
    study = trial(factors=dict(method=["raw"]))
    assert run(study, executor="debug")[0]["state"] == "finished"


def test_options_that_a_cluster_does_not_know(trial):
    study = trial(factors=dict(method=["raw"]))
    for executor, cluster in (("kubernetes", {}), ("local", dict(local_colour=1))):
        with pytest.raises(DataError, match=f"executor {executor}"):
            run(study, executor=executor, cluster=cluster)


def test_what_a_queue_is_asked_for(trial, place, monkeypatch):
    for name, says in (("srun", ""), ("sbatch", 'cp "$1" "$0.asked"; echo Submitted batch job 7')):
        program = place / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{says}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    study = trial(factors=dict(method=["raw"]))
    cluster = dict(slurm_partition="night", slurm_cpus_per_task=4, timeout_min=90)
    jobs = runner._start(study, {}, 3, "slurm", cluster)
    asked = (place / "bin" / "sbatch.asked").read_text()
    assert len(jobs) == 3
    for words in ("--array=0-2%3", "--partition=night", "--time=90", "--cpus-per-task=4"):
        assert f"#SBATCH {words}" in asked
    assert "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}" in asked
    again = runner.Worker(study.path, False, {}).checkpoint(2)
    assert again.args == (2,), "a job whose time is over is queued again"


# ------------------------------------------------------------------ pre-training


def test_a_pretraining_is_made_once_for_many_cells(trial):
    before = dict(function="MINE:pretrain", pretrain_steps=3)
    study = trial(
        factors=dict(method=["MINE:FromCheckpoint"], atmospheres=[1, 2], alpha=[0.0, 0.2]),
        base=dict(pretrain=before, image_size=[32, 32]),
        seeds=[0, 1],
    )
    records = [row["record"] for row in run(study)]
    lines = (study.root / "pretrainings").read_text().splitlines()
    assert lines == ["72 3 0", "72 3 1"], "all training samples, once for each seed"
    assert len({record["pretrained"]["key"] for record in records}) == 2
    assert len(list((study.folder.parent / "pretrained").glob("*.safetensors"))) == 2


def test_a_pretraining_that_another_makes_is_waited_for_or_not(trial):
    study = trial(
        factors=dict(method=["MINE:FromCheckpoint"]),
        base=dict(pretrain=dict(function="MINE:pretrain"), image_size=[32, 32]),
    )
    cell, folder = study.cells()[0], study.folder.parent / "pretrained"
    archives = {"toy": study.root / "data" / "toy.nc"}
    path = pretrained(cell, archives, folder)["path"]
    with FileLock(path.with_suffix(".lock")):
        with pytest.raises(DataError, match="another process"):
            pretrained(cell, archives, folder, wait=False)


def test_the_whole_way_from_pretraining_to_rain(trial):
    options = dict(method="internimage", steps=1, pretrain=dict(pretrain_steps=1))
    small = dict(finetune_batch=2, pretrain_batch=2, atmospheres=1)
    study = trial(cells=[options | small])
    record = run(study)[0]["record"]
    assert record["pretrained"]["history"][-1]["masked_loss"] > 0
    assert record["parameters"] > 100_000


# ------------------------------------------------------------------ tables


def test_a_table_is_rebuilt_from_the_committed_runs_bit_by_bit(trial):
    study = trial(factors=dict(method=["raw", "MINE:Counted"], atmospheres=[1, 3]), seeds=[0, 1])
    run(study)
    frame = table(study)
    folder = study.path.parent / "results"
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert sorted(files) == ["trial.csv", "trial.runs.json.xz"]
    for path in study.folder.glob("*.json"):
        path.unlink()
    (study.root / "data" / "toy.nc").unlink()
    (folder / "trial.csv").unlink()
    again = table(study)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files
    assert again.equals(frame) and len(frame) == 8 * 2 * len(READINGS)


def test_committed_runs_hold_nothing_twice_and_give_the_same_counts(trial):
    study = trial(factors=dict(method=["share", "raw"], atmospheres=[2]), seeds=[3])
    records = [row["record"] for row in run(study)]
    table(study)
    runs_file = runner._results(study)[0]
    content = json.loads(lzma.decompress(runs_file.read_bytes()))
    assert len(content["observed"]) == 1  # one test weather
    for record, one in zip(records, runner._committed(study).values()):
        assert one["result"]["confusion"] == record["result"]["confusion"]
        for kind, text in record["result"]["brier"].items():
            kept, whole = (np.array(t.split(), float) for t in (one["result"]["brier"][kind], text))
            assert np.allclose(kept, whole, rtol=1e-4, atol=0)


def test_a_table_has_the_scores_of_the_records(trial):
    study = trial(factors=dict(method=["share"], atmospheres=[2]), seeds=[3])
    record = run(study)[0]["record"]
    frame = table(study, write=False)
    columns = ["archive", "method", "atmospheres", "seed", "reading", "edge", "CSI", "bias", "F1"]
    columns += ["precision", "recall", "mIoU", "Brier", "Brier skill"]
    costs = ["parameters", "seconds", "ms", "valid log loss", "best step"]
    assert list(frame.columns) == [*columns, *costs]
    for row, expected in zip(frame.to_dict("records"), record["scores"]):
        for name, value in expected.items():
            if not isinstance(value, str):  # sums of squared errors keep five digits
                value = pytest.approx(np.nan if value is None else value, rel=1e-4, nan_ok=True)
            assert row[name] == value, name
    assert "share" in summary(frame) and not (study.path.parent / "results").exists()


def test_a_table_of_a_part_says_what_is_missing(trial, capsys):
    study = trial(factors=dict(method=["raw", "MINE:Counted"]))
    with pytest.raises(DataError, match="table: expected records in"):
        table(study)
    run(study, only=dict(method="raw"))
    capsys.readouterr()
    assert len(table(study)) == 2 * len(READINGS)
    assert "1 of 2 cells have no record yet" in capsys.readouterr().out


def test_options_that_vary_are_columns(trial):
    cells = [dict(method="MINE:Counted", factors=dict(power=[1, 2], hide=[["rain"], ["u10"]]))]
    study = trial(cells=cells)
    run(study)
    frame = table(study, write=False)
    assert list(frame.columns[:6]) == ["archive", "method", "atmospheres", "seed", "hide", "power"]
    assert set(frame["hide"]) == {'["rain"]', '["u10"]'}


@pytest.mark.parametrize("data", [b"", b"no xz", lzma.compress(b"{}"), lzma.compress(b"[1")])
def test_damaged_committed_runs(trial, data):
    study = trial(factors=dict(method=["raw"]))
    file = study.path.parent / "results" / "trial.runs.json.xz"
    file.parent.mkdir()
    file.write_bytes(data)
    with pytest.raises(DataError, match="trial.runs.json.xz: expected the runs of a study"):
        table(study)


def test_committed_runs_have_a_limit(trial, monkeypatch):
    study = trial(factors=dict(method=["raw"]))
    run(study)
    monkeypatch.setattr(runner, "LIMIT", 100)
    with pytest.raises(DataError, match="at most 100"):
        table(study)
    assert not list((study.path.parent / "results").glob("*"))


def test_time_left_is_that_of_cells_like_the_missing_ones():
    records = [
        dict(cell=dict(method="a", atmospheres=1), seconds=10),
        dict(cell=dict(method="a", atmospheres=2), seconds=30),
        dict(cell=dict(method="b", atmospheres=1), seconds=80),
    ]
    expected = runner._expected_seconds
    assert expected(dict(method="a", atmospheres=2), records) == 30
    assert expected(dict(method="a", atmospheres=9), records) == 20
    assert expected(dict(method="c", atmospheres=9), records) == 40


def test_the_example_of_the_lesson_is_a_study(monkeypatch):
    study = Study.load("experiments/example.yaml")
    assert len(study.cells()) == 6 and study.parts["expected"]
    assert {c["method"] for c in Study.load("experiments/example.yaml", fast=True).cells()} == {
        "raw",
        "unet",
    }
    assert yaml.safe_load(study.path.read_text())["title"] == study.parts["title"]


def test_a_cell_of_two_studies_is_run_once(trial):
    first = trial(cells=[dict(method="raw"), dict(method="climatology")])
    run(first)
    made = sorted(first.folder.glob("*.json"))
    second = first.path.with_name("second.yaml")
    second.write_text(first.path.read_text())
    second = Study.load(second)
    assert "missing" not in status(second)
    run(second)
    assert len(made) == 2 and sorted(second.folder.glob("*.json")) == made
    assert [one.cell for one in results(second)] == second.cells()
    assert [one.cell["method"] for one in results(second, method="raw")] == ["raw"]


def test_an_encoder_can_come_from_labels_elsewhere(trial):
    before = dict(function="sslpdl_nb.finetune:finetune", finetune_steps=2, finetune_batch=2)
    options = dict(method="internimage", steps=1, pretrain=before | dict(atmospheres=2))
    study = trial(cells=[options | dict(finetune_batch=2, atmospheres=1)])
    record = run(study)[0]["record"]
    assert record["pretrained"]["history"][-1]["valid_loss"] > 0
    assert record["pretrained"]["options"]["atmospheres"] == 2


# ------------------------------------------------------------------ another kind of trial


def test_a_study_of_another_kind_has_the_same_runner(trial):
    factors = dict(method=["long", "longer"], times=[1, 3])
    parts = dict(trial="MINE:LENGTHS", base={}, factors=factors, seeds=[0, 1])
    study = trial(**parts)
    assert len(run(study)) == 8
    frame = table(study)
    assert sorted(frame["length"].unique()) == [4, 6, 12, 18] and "times" in frame
    assert study.trial.summary(frame) == "longest 18"
    for path in study.folder.glob("*.json"):
        path.unlink()
    assert [one.result for one in results(study, seed=1)] == [4, 12, 6, 18]
    with pytest.raises(DataError, match="times: expected at least 1, found 0"):
        trial(**parts | dict(base=dict(times=0), factors=dict(method=["long"]))).cells()
    with pytest.raises(DataError, match="make it by: echo nowhere"):
        status(trial(**parts | dict(archive=dict(toy="nowhere"))))


def test_an_unknown_trial_is_refused(trial):
    with pytest.raises(DataError, match="expected something that Python finds"):
        trial(trial="MINE:NOTHING", factors=dict(method=["raw"])).cells()
