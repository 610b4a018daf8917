# make install | reproduce | test | lab | site | notebooks | export | lock | clean
PYTHON ?= python3
NAME   ?= sample
PARAMS ?=
# notebooks side by side; of larger sizes one at a time, for the memory
JOBS   ?= $(if $(PARAMS),1,2)
LOCKED ?=
LAB    ?=
BIN    := .venv/bin
DONE   := .venv/.installed
LOCK   := requirements/tested-py311.txt
PIP    := $(BIN)/python -m pip install --quiet

# threads that wait sleep: many times faster on shared cores
export OMP_WAIT_POLICY ?= passive

.PHONY: help install store reproduce test lab site notebooks export lock clean slides student
help:
	@echo "make install     put everything into .venv; LOCKED=1: the exact versions of $(LOCK)"
	@echo "make reproduce   run every notebook on the bundled sample; results in runs/$(NAME)/; JOBS=1: one by one"
	@echo "make test        check notebooks and modules, run the notebooks quickly, run the tests"
	@echo "make lab         open JupyterLab on nbs/"
	@echo "make site        lessons and reference as web pages, in runs/site/; no notebook is run"
	@echo "make notebooks   run the notebooks in place and keep their outputs"
	@echo "make export      write sslpdl_nb/ and README.md from the notebooks"
	@echo "make lock        write down the versions of this environment, after a green make test"
	@echo "make slides      talks from marked cells in runs/slides/; once with REVEAL=FILE of reveal.js"
	@echo "make student     the lessons without solutions in runs/student/"

$(DONE): settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
ifneq ($(LOCKED),)
	$(PIP) -r $(LOCK)
	$(PIP) --no-deps -e .
else
	$(PIP) -e ".[dev]"
endif
	@touch $@

install: $(DONE)

store: $(DONE)
	$(BIN)/python tools/sample_store.py

reproduce: store
	$(BIN)/python tools/run_notebooks.py --out runs/$(NAME) --fresh --html --jobs $(JOBS) $(if $(PARAMS),--params $(PARAMS))

test: store
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/python tools/check_repo.py
	$(BIN)/python tools/run_notebooks.py --out runs/test --fresh --params params/fast.yaml --solutions --jobs 2
	$(BIN)/python -m pytest -q -n auto --dist loadfile tests

lab: store
	$(BIN)/jupyter lab --notebook-dir=nbs $(LAB)

site: $(DONE)
	$(BIN)/python tools/site_build.py

notebooks: store
	$(BIN)/python tools/run_notebooks.py --out runs/sample --fresh --in-place
	$(BIN)/python tools/make_readme.py

export: $(DONE)
	$(BIN)/python tools/export.py

lock: $(DONE)
	$(BIN)/python tools/lock.py

slides: $(DONE)
	$(BIN)/python tools/course_slides.py $(if $(REVEAL),--reveal $(REVEAL))

student: $(DONE)
	$(BIN)/python tools/course.py student

clean:
	rm -rf .venv runs _proc _docs *.egg-info data_samples/tiny/store.zarr
