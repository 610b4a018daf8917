# make reproduce | test | lab | notebooks | export | clean
PYTHON ?= python3
NAME   ?= sample
PARAMS ?=
BIN    := .venv/bin
DONE   := .venv/.installed

.PHONY: help install reproduce test lab notebooks export clean
help:
	@echo "make reproduce   run every notebook on the bundled sample; results in runs/$(NAME)/"
	@echo "make test        check that modules match notebooks, imports run forward, notebooks and tests pass"
	@echo "make lab         open JupyterLab on nbs/"
	@echo "make notebooks   run the notebooks in place and keep their outputs"
	@echo "make export      write sslpdl_nb/ and README.md from the notebooks"

$(DONE): settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

install: $(DONE)

reproduce: $(DONE)
	$(BIN)/python tests/run_notebooks.py --out runs/$(NAME) --fresh --html $(if $(PARAMS),--params $(PARAMS))

test: $(DONE)
	$(BIN)/python tests/check_repo.py
	$(BIN)/python tests/run_notebooks.py --out runs/test --fresh --params params/fast.yaml --solutions
	$(BIN)/python -m pytest -q tests

lab: $(DONE)
	$(BIN)/jupyter lab --notebook-dir=nbs

notebooks: $(DONE)
	$(BIN)/python tests/run_notebooks.py --out runs/sample --fresh --in-place
	$(BIN)/python tests/make_readme.py

export: $(DONE)
	$(BIN)/nbdev_export
	$(BIN)/python tests/clean_notebooks.py
	$(BIN)/python tests/make_readme.py

clean:
	rm -rf .venv runs _proc _docs *.egg-info
