# `make help` lists everything. Each target sets up what it needs in .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-slow lint format types contracts check bench bench-thresholds bench-scoring bench-gpu bench-chaos bench-scale bench-exports bench-report bench-inspect bench-conditions bench-service bench-downloads bench-training docs lock doctor clean image-check tools sbom audit bench-quality

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: ## Create or update .venv (torch, vLLM for this machine, the project, test tools)
	@$(PYTHON) scripts/install.py

demo: install ## Prune the shipped dataset with planted truth through vLLM, and show where each kind landed
	$(BIN)/qtune prune examples/demo/data.jsonl --model examples/demo/model --category-field category --min-tokens-to-prune 16 \
		--output out/demo --overwrite
	@$(BIN)/python examples/demo/table.py out/demo

test: install ## All tests, with real vLLM, Ray, S3 endpoint and browser; files side by side
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-fast: install ## Tests without engines, servers and clusters: under two minutes on two cores
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile $(FAST)

FAST := $(addprefix tests/unit/,selection storage ingest tokenize output cli test_config.py test_spec_bounds.py test_samples.py \
	test_job_command.py test_logs.py test_imports.py test_language.py)

test-slow: install ## Kills and outages that take a minute and more each
	$(BIN)/python -m pytest -m slow

lint: install ## Style: ruff, and the language of docstrings and docs
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python scripts/language.py

format: install ## Rewrite files in the house style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

types: install ## Types: mypy, strict
	$(BIN)/mypy

contracts: install ## Layers: import-linter
	$(BIN)/lint-imports

check: lint types contracts test ## All of the above, as CI does

bench-thresholds: install ## Thresholds from 1e5 to 1e8 samples
	$(BIN)/python -m benchmarks.selection.thresholds

bench-scoring: install ## Scoring engines side by side
	$(BIN)/python -m benchmarks.scoring

bench-gpu: install ## A GPU's share of its peak on 0.5B and 7B shapes, and the kernel against blocks of logits
	$(BIN)/python -m benchmarks.scoring.gpu

bench-chaos: install ## Random kills of every part of a job, compared with an undisturbed run
	$(BIN)/python -m benchmarks.chaos --kills 40 --seed 1

bench-scale: install ## Ten million records through a whole job (half an hour)
	$(BIN)/python -m benchmarks.scale --sizes 1e5 1e6 1e7

bench-exports: install ## Rows/s and memory of every export, at a million rows
	$(BIN)/python -m benchmarks.scale.exports

bench-report: install ## Size and build time of the report at 1e4 and 1e6 samples
	$(BIN)/python -m benchmarks.scale.report

bench-inspect: install ## Questions to an output of a million samples
	$(BIN)/python -m benchmarks.service.queries

bench-conditions: install ## Questions by a child process against the same in one process
	$(BIN)/python -m benchmarks.service.conditions

bench-service: install ## The front end: requests/s, event streams, memory, import time
	$(BIN)/python -m benchmarks.service

bench-downloads: install ## Downloads of 2 GiB from a server on this machine
	$(BIN)/python -m benchmarks.service.downloads

bench-training: install ## What a pruned training step costs and saves
	$(BIN)/python -m benchmarks.training

bench-quality: install ## Tiny models trained on data with planted flaws, by every method (hours on one thread)
	$(BIN)/python -m benchmarks.quality run --results benchmarks/quality/results.jsonl
	$(BIN)/python -m benchmarks.quality agree --results benchmarks/quality/agreement.jsonl
	$(BIN)/python -m benchmarks.quality report --results benchmarks/quality/results.jsonl benchmarks/quality/agreement.jsonl

bench: bench-thresholds bench-scoring bench-chaos bench-scale bench-exports ## All benchmarks that need no GPU

docs: install ## Write the option tables of docs/ from the code
	$(BIN)/python scripts/write_reference.py

doctor: install ## What this machine can do
	$(BIN)/qtune doctor

lock: install tools ## Write constraints.txt from the installed, tested versions, and requirements/ with their hashes
	$(BIN)/python scripts/lock.py --uv $(TOOLS)/uv

TOOLS := build/tools/bin
build/tools/installed.txt: requirements/tools.txt
	$(PYTHON) -m venv --clear build/tools
	$(TOOLS)/pip install -q --require-hashes --only-binary :all: -r requirements/tools.txt && cp requirements/tools.txt $@

tools: build/tools/installed.txt ## What checks the Dockerfile, the compose file and packages, in build/tools: apart from .venv

image-check: ## Build the images api and worker-cpu without a registry, run them, prune through them (root, buildah, mmdebstrap)
	@$(PYTHON) scripts/check_images.py

sbom: install tools ## What is installed, as CycloneDX: build/sbom.json
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json $(BIN)/python

audit: tools ## Known vulnerabilities of the pinned versions; says how many could be looked up
	@$(PYTHON) scripts/audit.py --pip-audit $(TOOLS)/pip-audit --report build/audit.json $(AUDIT)

clean: ## Remove the environment and outputs
	rm -rf .venv out build dist
