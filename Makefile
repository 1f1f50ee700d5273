# make demo   set up, train on the embedded data set and attack; then the same on less data
# make test   set up, lint, and run the tests (about 6 minutes on 2 cores)
# make test-slow   run the tests that take minutes each
# make kernels   build csrc/ in place, after a change of it
# make gpu-records   on a machine with a card: README's line in full, tests and benchmarks, into
#                    results/; each step has BUDGET=600 seconds, and the training goes on the next
#                    time; uses PYTHON with torch as it is and downloads nothing

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
BUDGET ?= 600
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-slow kernels lint gpu-records clean

$(VENV)/.ready: pyproject.toml setup.py advprune/reference.py $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	ADVPRUNE_KERNELS=0 $(RUN) -m pip install --quiet --editable '.[dev]'
	$(RUN) setup.py --quiet build_ext --inplace
	touch $@

kernels: $(VENV)/.ready
	$(RUN) setup.py --quiet build_ext --inplace

demo: $(VENV)/.ready
	$(RUN) train.py --dataset digits --recipe robust --out $(DEMO)
	$(RUN) evaluate.py $(DEMO) --attack autoattack --n 100
	@echo "the experiment, less data: --prune random"
	$(RUN) train.py --dataset digits --recipe robust --prune random --p 0.4 --epoch 3 \
		--out $(DEMO)-random
	$(RUN) evaluate.py $(DEMO)-random --attack autoattack --n 100
	@echo "what works: --recipe robust on all data, and fewer --epochs if time is short: $(DEMO)"
	@echo "the experiment: $(DEMO)-random; pruned.png there shows what was dropped"
	@echo "your images: $(RUN) train.py --dataset folder --data-dir DIR --recipe robust --minutes 10"

test: $(VENV)/.ready lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m 'slow and not gpu' -n auto --maxprocesses 4 --dist worksteal

lint: $(VENV)/.ready
	$(RUN) -m ruff check .
	$(RUN) -m mypy

gpu-records:
	@$(PYTHON) -c "import sys, torch; torch.cuda.is_available() or sys.exit('it needs a CUDA GPU')"
	$(PYTHON) setup.py --quiet build_ext --inplace
	@$(PYTHON) -c "import sys; from advprune import ops; 'cuda' in ops.KERNELS or sys.exit('it needs the CUDA kernels')"
	-timeout $(BUDGET) $(PYTHON) -m experiments headline
	-timeout $(BUDGET) $(PYTHON) -m pytest -m gpu
	-timeout $(BUDGET) $(PYTHON) -m benchmarks ablation --json results/gpu-ablation.json
	-timeout $(BUDGET) $(PYTHON) -m benchmarks kernels --json results/gpu-kernels.json

clean:
	rm -rf $(VENV) build advprune/_C_*.so *.egg-info .pytest_cache .ruff_cache .mypy_cache
