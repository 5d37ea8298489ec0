# make demo    environment, dependencies, then the whole job on the bundled checkpoint
# make test    environment, dependencies, lint and tests
# make plugins the CUDA plugins alone, which the others build when they need them; ARCHITECTURES=all for releases
# make gpu-check   every network on this machine's GPU, checked: one table, one file to send us (docs/gpu_check.md)
# make exercise DIR=my_bert    a copy of the project to work in, with the exercise's tasks blank (docs/tutorial/)
# make grade   in such a copy: what is right, what is wrong and why; TASKS="1 6", SEED=7, JSON=FILE, LANGUAGE=zh
# make lint    ruff, basedpyright (against the types of the full tensorrt), clang-format
# make clean   removes what was built; `rm -r .venv` removes the environment
#
# PYTHON=python3.12 chooses the interpreter, GPU=0 ignores an NVIDIA GPU, CHECK="--only fp16,packed" says what to check.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) bert_trt/progress.py "installing" $(PY) -m pip install --disable-pip-version-check --progress-bar off
CPP_FILES = $(wildcard plugins/*.c plugins/*/*.cpp plugins/*/*.cu plugins/*/*.h plugins/*/*.cuh tests/*.cpp)
# Answered by the driver: on a machine with a GPU, plans can be executed as well as built.
GPU    ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo 0)
# gettext's variable of this name may be in the environment too; exercise.py looks for it there.
LANGUAGE_OPTION = $(if $(filter command line,$(origin LANGUAGE)),--language "$(LANGUAGE)")

.PHONY: demo test gpu-check exercise grade lint format plugins clean
.DELETE_ON_ERROR:

# The demo goes on without the plugins where no CUDA compiler can be installed, and says so.
demo: $(VENV)/.installed
	@$(MAKE) --silent $(VENV)/.installed-cuda || \
	  echo "warning: plugins/requirements-cuda.txt could not be installed (the reason stands above)" >&2
	$(PY) demo.py

# The tests would build the plugins too, but pytest keeps to itself what is printed meanwhile. A process for each core; a
# file's tests stay in one process, since they share what takes long to make.
test: lint plugins $(VENV)/.installed-serving
	$(PY) -m pytest tests --numprocesses auto --maxprocesses 8 --dist loadfile

gpu-check: $(VENV)/.installed-cuda
	$(PY) gpu_check.py $(CHECK)

# DIR has no default: the folder is a student's.
exercise: $(VENV)/.installed
	@test -n "$(DIR)" || { echo "error: name the new folder: make exercise DIR=my_bert" >&2; exit 2; }
	@$(PY) exercise.py make "$(DIR)" $(LANGUAGE_OPTION)

grade: $(VENV)/.installed
	@$(MAKE) --silent $(VENV)/.installed-cuda || \
	  echo "warning: plugins/requirements-cuda.txt could not be installed (the reason stands above); kernels are not graded" >&2
	@$(PY) exercise.py grade $(TASKS) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json "$(JSON)") $(LANGUAGE_OPTION)

# The plugin library and its host. CMake decides what is out of date; where no CUDA compiler or no CMake is
# installed, the ones from NVIDIA's and Kitware's pip packages are.
plugins: $(VENV)/.installed-cuda
	@$(PY) plugins/build.py $(if $(ARCHITECTURES),--architectures $(ARCHITECTURES))

$(VENV)/.installed-cuda: plugins/requirements-cuda.txt $(VENV)/.installed
	@$(PY) plugins/build.py --check-tools || $(PIP) -r plugins/requirements-cuda.txt
	@touch $@

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP_FILES)

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP_FILES)

# The stamps are newer than the requirement files once everything is installed: a second run installs nothing.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is missing or older than Python 3.10; install Python 3.10 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv), or name another Python: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-base: requirements.txt | $(PY)
	$(PIP) -r requirements.txt
	@touch $@

ifeq ($(GPU),1)
$(VENV)/.installed: $(VENV)/.installed-gpu
else
$(VENV)/.installed: $(VENV)/.installed-base
endif
	@touch $@

# pycuda by itself, since it is compiled: where that fails, the full TensorRT stays.
$(VENV)/.installed-gpu: requirements-gpu.txt requirements-pycuda.txt $(VENV)/.installed-base
	$(PIP) -r requirements-gpu.txt || \
	  echo "warning: requirements-gpu.txt could not be installed (the reason stands above); plans will be built but not executed" >&2
	$(PIP) -r requirements-pycuda.txt || \
	  echo "warning: pycuda could not be compiled (the reason stands above; it needs a CUDA toolkit with nvcc on the PATH); plans will be built but not executed" >&2
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-onnx.txt requirements-predict.txt requirements-cluster.txt $(VENV)/.installed
	$(PIP) -r requirements-dev.txt
	@# Types of the full tensorrt, for the type checker alone. --no-deps: the package asks for tensorrt itself.
	@# --target: beside the other packages it would answer `import tensorrt` with an empty module.
	$(PIP) --no-deps --upgrade --target $(VENV)/stubs tensorrt-stubs==10.13.0.35.1
	@touch $@

# Triton Inference Server, for its tests. Apart from the other packages, which need newer versions of some of these.
$(VENV)/.installed-serving: requirements-serving.txt $(VENV)/.installed-dev
	$(PIP) --no-deps --only-binary :all: --upgrade --target $(VENV)/serving -r requirements-serving.txt || \
	  echo "warning: requirements-serving.txt could not be installed (the reason stands above); the tests that start Triton will be skipped" >&2
	@touch $@

clean:
	rm -rf out build plugins/build .pytest_cache .ruff_cache
