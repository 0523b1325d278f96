# make        set up .venv and train on synthetic scenes (the main job on its embedded default)
# make test   set up .venv and run the tests
# make lint   ruff and mypy
# make docs   the site of docs/ into build/docs
# make kills  kill training 100 times and see that nothing is lost (make test: 20 times)
# make fuzz   feed 10,000 damaged files to all that reads files (make test: 1,000)
# make rsicd DATA=DIR   train the three captioners that ship from RSICD's files (docs/rsicd.md); OPTIONS="..." are given
#             to every step of it
# make setup  only set up .venv
#
# On Linux the torch that arrives can use NVIDIA GPUs and takes 6 GB on the disk. UV_TORCH_BACKEND=cpu make setup
# installs the CPU's (1 GB) from PyTorch's own index instead.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
REQUIREMENTS := -r requirements.txt -r requirements-dev.txt

.PHONY: run test kills fuzz rsicd lint docs setup
run: setup
	$(VENV)/bin/python train.py

# so that Python compiles the libraries once, and not in every process that the tests start
test: export PYTHONDONTWRITEBYTECODE =
test: setup
	$(VENV)/bin/python -m pytest

kills: setup
	$(VENV)/bin/python -m tests.kills --kills 100

fuzz: setup
	$(VENV)/bin/python -m tests.fuzz --cases 10000

TRAIN = $(VENV)/bin/python train.py --data-root $(DATA) --resume
SHIP = $(VENV)/bin/python -m utils.ship --decoding method=consensus --decoding beam_size=10 --decoding views=8
rsicd: setup
	for step in encoder captions; do \
		$(TRAIN) --config configs/rsicd/$$step.yaml --output-dir runs/rsicd/$$step $(OPTIONS) || exit; \
	done
	$(SHIP) runs/rsicd/captions/best.safetensors runs/rsicd/rsicd.safetensors
	for seed in 0 1; do \
		$(TRAIN) --config configs/rsicd/dinov2.yaml --output-dir runs/rsicd/dinov2-$$seed --seed $$seed $(OPTIONS) && \
		$(SHIP) --rank 96 runs/rsicd/dinov2-$$seed/best.safetensors runs/rsicd/rsicd-dinov2-$$seed.safetensors \
			|| exit; \
	done

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy .

docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet

setup: $(VENV)/ready

# uv, since it installs torch's gigabytes in seconds and links them where several environments exist; pip where only
# pip is configured to find packages
$(VENV)/ready: $(wildcard requirements*.txt)
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(VENV)/bin/uv pip install --quiet --system-certs --python $(VENV)/bin/python $(REQUIREMENTS) \
		|| $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(REQUIREMENTS)
	touch $@
