# Everything that a person or CI runs. Needs Python (>= 3.10) and make; sets up the rest in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SET_UP := $(VENV)/.set-up

# Files that each fuzzer of `make fuzz` tries: ten minutes on 2 cores.
FUZZ_EXAMPLES ?= 4000

.PHONY: help setup docs demo picture dist example test test-slow test-ci test-long fuzz structure audit check format vllm-env bench precisions screenshots why why-page repair repair-page methods-table training leaderboards schema field clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /: /'

setup: $(SET_UP) ## make .venv with everything the other targets need

$(SET_UP): pyproject.toml .ci/constraints.txt .ci/gptq.txt .ci/no-deps.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev,docs,auto-round,ggml,hqq,lm-eval,quanto,sweep,torchao,compressed-tensors]' -r .ci/gptq.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r .ci/no-deps.txt
	# Compile quanto's extension now: the first test at quanto-int4 would wait a minute for it.
	-$(BIN)/python -W ignore \
	  -c "from optimum.quanto.library.extensions.cpp import ext; ext.lib" >/dev/null 2>&1
	touch $@

demo: $(SET_UP) ## forgotten knowledge comes back at 4 bits: trains, unlearns, quantizes, compares
	$(BIN)/unlearnbench demo

example: $(SET_UP) ## the main job on a real pretrained model, at three precisions
	$(BIN)/unlearnbench --model "$$($(BIN)/python -m unlearnbench.demo.smollm2)" \
	  --quant none,8bit,4bit --tasks demo --limit 8 --output example-out

test: $(SET_UP) ## the default suite, some minutes on 2 cores; COVERAGE=90 fails below so many percent
	$(BIN)/python -m pytest -m "not slow and not long and not bench" -n 2 --dist worksteal \
	  --durations=40 \
	  $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=$(COVERAGE))

test-slow: $(SET_UP) ## the tests on SmolLM2-135M and a short demo, about half an hour on 2 cores
	$(BIN)/python -m pytest -m slow --durations=20

test-ci: $(SET_UP) ## those of them that CI runs: SmolLM2 one prompt at a time, the demo's effect, processes
	$(BIN)/python -m pytest -m "slow and ci" --durations=20

test-long: $(SET_UP) ## the demo on three seeds and its control, about half an hour on 2 cores
	$(BIN)/python -m pytest -m long

fuzz: $(SET_UP) ## feed the loaders broken and hostile files, ten minutes on 2 cores
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -rP tests/hostile/test_fuzz.py -n 2

check: $(SET_UP) ## lint, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

structure: $(SET_UP) ## print the plan of the package in figures, beside their limits
	$(BIN)/python -W ignore -m tests.structure

dist: $(SET_UP) ## the wheel and the source archive in dist/, the wheel tried in a fresh environment
	rm -rf dist && $(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv dist/.try
	dist/.try/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt dist/*.whl
	dist/.try/bin/unlearnbench --version && dist/.try/bin/unlearnbench tasks >/dev/null
	rm -rf dist/.try

audit: $(SET_UP) ## are the installed packages those that were asked for, and do they fit together
	$(BIN)/python .ci/audit.py

format: $(SET_UP) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

vllm-env: ## make .venv-vllm for the slow tests of --backend vllm; some 3 GB, for CPUs
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --requirement tests/models/vllm-environment.txt
	# Built for another torch than vLLM's, and transformers imports what it finds.
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

bench: $(SET_UP) ## measure speed and memory against other evaluators, some three hours on 2 cores; needs UNLEARNBENCH_DATA
	$(BIN)/python -m pytest -m bench -s tests/benchmarks
	$(BIN)/python -W ignore -m tests.benchmarks.measure_speed --model tiny --repeats 3 --parts tasks
	$(BIN)/python -W ignore -m tests.benchmarks.measure_speed --model smollm2

picture: $(SET_UP) ## README's picture, from a finished demo
	$(BIN)/python -m tests.benchmarks.readme_picture demo-out

screenshots: $(SET_UP) ## the docs' pictures of the boards, from a finished demo; needs chromium
	$(BIN)/python -m tests.benchmarks.screenshots demo-out

why: $(SET_UP) ## the experiment of docs/why.md, hours on 2 cores; goes on where it was interrupted
	$(BIN)/python -W ignore -m tests.benchmarks.measure_why --out why-out

why-page: $(SET_UP) ## the tables, plot and curve of docs/why.md; CELLS=why-out gathers that first
	$(BIN)/python -W ignore -m tests.benchmarks.why_page $(if $(CELLS),--cells $(CELLS))

repair: $(SET_UP) ## the evidence of docs/repair.md, hours on 2 cores; goes on; DEMO="--demo 0=demo-out" takes what is there
	$(BIN)/python -W ignore -m tests.benchmarks.measure_repair --out repair-out --write $(DEMO)

repair-page: $(SET_UP) ## the tables and the plot of docs/repair.md again, from docs/repair-rows.json
	$(BIN)/python -W ignore -m tests.benchmarks.repair_page

methods-table: $(SET_UP) ## every method on the demo's models against predictions, hours; goes on; DEMO="--demo 0=demo-out" takes what is there
	$(BIN)/python -W ignore -m tests.benchmarks.measure_methods --out methods-out --write $(DEMO)

precisions: $(SET_UP) ## measure every precision on SmolLM2-135M: the table of docs/precisions.md
	$(BIN)/python tests/benchmarks/measure_precisions.py \
	  --model "$$($(BIN)/python -m unlearnbench.demo.smollm2)"

training: $(SET_UP) ## measure training on SmolLM2-135M: the table of docs/methods.md; needs UNLEARNBENCH_DATA
	$(BIN)/python -m tests.benchmarks.measure_training --batch-size 2 --max-length 64 \
	  --model "$$($(BIN)/python -m unlearnbench.demo.smollm2)"

leaderboards: $(SET_UP) ## recompute every board's entries, then write tables, pages and the index
	$(BIN)/unlearnbench leaderboard verify
	$(BIN)/unlearnbench leaderboard build
	$(BIN)/unlearnbench leaderboard index

docs: $(SET_UP) ## the docs as a site in site/, the boards beside them; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean && rm -rf site/leaderboards
	cp -r leaderboards site/leaderboards

schema: $(SET_UP) ## write docs/schema from the result types
	$(BIN)/python -m tests.schemas docs/schema

field: $(SET_UP) ## write docs/field.md from the tests' marks
	$(BIN)/python -m tests.field docs/field.md

clean: ## remove .venv and everything that was made
	rm -rf $(VENV) build dist site demo-out demo-out-dense example-out
