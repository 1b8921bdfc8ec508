# PYTHON makes the virtual environment: 3.11 or 3.12.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# Three processes: most tests wait for subprocesses or use one thread. The tests of a file share trained models.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder
# pip leaves compiling to the first import. If no process kept the result, each would compile torch again.
unexport PYTHONDONTWRITEBYTECODE
CODE := kenya_birds tests examples benchmarks docs train_hf.py push_model.py setup.py

.PHONY: help install test wheel compatibility demo quality style docs images notebook clean

help:
	@echo "make demo          install, then make a synthetic archive, train on it, and detect birds in it"
	@echo "make test          install, then run the tests"
	@echo "make wheel         build the wheel, and use it in an empty environment"
	@echo "make compatibility test a model with the oldest and the newest versions of libraries that setup.cfg allows"
	@echo "make quality       check format, lint, types and documentation"
	@echo "make style         format, and fix what the linter can fix"
	@echo "make docs          build the documentation's site in site/"
	@echo "make images        run the demo and draw the figures in docs/images"
	@echo "make notebook      run examples/story.ipynb and save it with its outputs"
	@echo "make clean         remove the environment, the demo's output and the documentation's site"

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in ((3, 11), (3, 12)) and f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing (about 6 GB, a few minutes) ..."
	@# setuptools warns of the flat layout in every editable installation.
	@# Python compiles the modules that it imports. Compiling all 22,000 of them takes a minute and a half.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	@touch $@

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

compatibility: install
	$(BIN)/python tests/compatibility.py

wheel: install
	$(BIN)/python tests/wheel.py

demo: install
	rm -rf $(DEMO)
	$(BIN)/kenya-birds synthesize $(DEMO)/archive --recordings 16 --duration_s 120 --species 8 --annotations 320
	$(BIN)/accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process 2 train_hf.py --data_dir $(DEMO)/archive --output_dir $(DEMO)/model \
		--cache_dir $(DEMO)/cache --use_cpu --backbone test_convnext --init_from scratch \
		--overlap_s 1.5 --num_train_epochs 12 --windows_per_epoch 400 --noise_reduction none --learning_rate 3e-3 \
		--per_device_train_batch_size 16
	$(BIN)/kenya-birds detect $(DEMO)/model $(DEMO)/archive --output $(DEMO)/found
	@# A recording that was not trained on.
	@recording=$$(awk -F, '$$2 == "test" { print $$1; exit }' $(DEMO)/model/splits.csv); set -x; \
	$(BIN)/kenya-birds plot $(DEMO)/archive/soundscape_data/$$recording $(DEMO)/found/detections.csv \
		--output $(DEMO)/found/spectrogram.png
	@# How good the detections in the test recordings are.
	$(BIN)/kenya-birds score $(DEMO)/found $(DEMO)/archive --splits_file $(DEMO)/model/splits.csv
	@echo "The archive is in $(DEMO)/archive; the model with its card (README.md), metrics and figures in $(DEMO)/model;"
	@echo "detections in $(DEMO)/found: detections.csv, detections.selections.txt (for Raven), spectrogram.png."

quality: install
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/zensical build --strict

style: install
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

docs: install
	$(BIN)/zensical build --strict

images: demo
	$(BIN)/python docs/make_images.py $(DEMO)

notebook: install
	KENYA_BIRDS_STORE_NOTEBOOK=1 $(BIN)/python -m pytest -n 0 tests/test_notebook.py

clean:
	rm -rf $(VENV) $(DEMO) site
