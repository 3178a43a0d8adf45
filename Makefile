# Verbs of this project. `make quickstart` and `make test` set everything up by themselves, in either order.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Photographs that installed packages ship are used where no folder is given.
IMAGES ?= $(shell $(BIN)/python -c "import pathlib, skimage, sklearn; print(pathlib.Path(skimage.__file__).parent / 'data', pathlib.Path(sklearn.__file__).parent / 'datasets/images')" 2>/dev/null)

# CPU=plain: decisions and oneDNN as on a CPU without bf16, VNNI and AMX; docs/how-to/ci.md says what cannot be masked.
ifeq ($(CPU),plain)
export MIMEXPORT_CPU := plain
export ONEDNN_MAX_CPU_ISA := AVX512_CORE
else ifneq ($(CPU),)
$(error CPU=$(CPU): expected plain, or nothing)
endif

.DEFAULT_GOAL := help
.PHONY: help install quickstart bench bench-gpu bench-keep bench-serve bench-scale eval-engines eval-baseline eval-table known-answers test test-cpu test-scale test-slow attack gpu-test lint clean docs reference picture screenshots

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(STAMP)  ## virtual environment in .venv with everything pinned

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,cpu,fast,openvino,parquet,eval,serve,browse,grpc,tensorrt-rtx,dev]'
	touch $@

quickstart: $(STAMP)  ## build mae-tiny, embed photographs (IMAGES=folder for your own), show nearest neighbours
	$(BIN)/mimexport build --model mae-tiny --agg topk --with-selection --force
	$(BIN)/mimexport embed artifacts/mae-tiny-topk $(IMAGES) --out artifacts/vectors.parquet
	$(BIN)/python examples/neighbours.py artifacts/vectors.parquet
	@echo; echo "See them in a browser:"
	@echo "  $(BIN)/mimexport browse artifacts/mae-tiny-topk $(IMAGES:%=--images %) --vectors artifacts/vectors.parquet"

ARTIFACT ?= artifacts/mae-tiny-topk
bench-serve: $(STAMP)  ## the service: throughput, p50 and p99 against load, as table and plot (ARTIFACT=folder)
	test -d $(ARTIFACT) || $(BIN)/mimexport build --model mae-tiny --agg topk --out $(ARTIFACT)
	$(BIN)/python examples/bench_service.py $(ARTIFACT) reports/serve $(IMAGES)

BENCH_ARTIFACTS = artifacts/bench-b16 artifacts/mae-tiny-topk
bench: $(STAMP)  ## engines against torch and timm's plain export: ViT-B/16 (random weights) and mae-tiny, as table, JSON and plot
	test -d artifacts/bench-b16 || $(BIN)/mimexport build --model mae-b16 --agg topk --random-weights --out artifacts/bench-b16
	test -d artifacts/mae-tiny-topk || $(BIN)/mimexport build --model mae-tiny --agg topk
	for artifact in $(BENCH_ARTIFACTS); do for engine in onnxruntime openvino; do \
	    $(BIN)/mimexport compile $$artifact --engine $$engine || exit 1; done; done
	for artifact in $(BENCH_ARTIFACTS); do $(BIN)/mimexport bench $$artifact --peers $(IMAGES:%=--images %) \
	    --json reports/bench/$$(basename $$artifact).json --plot reports/bench/$$(basename $$artifact).png || exit 1; done

# Tiny ImageNet where it lies beside the checkout, else images drawn from a seed; DATA=SPEC for your own.
# A thread of torch that waits must not spin: engines and decoding want its core.
EVAL = OMP_WAIT_POLICY=PASSIVE $(BIN)/python tools/eval_engines.py $(if $(DATA),--data $(DATA))
eval-engines: $(STAMP)  ## the regression gate over every engine and precision here (CPU=plain: as without bf16, VNNI, AMX); exit status 0 pass, 1 fail, 3 undecided
	$(EVAL)

eval-baseline: $(STAMP)  ## the same, and what is found becomes eval/baseline.json
	$(EVAL) --write-baseline

# bf16 in torch where the CPU has none: there OpenVINO rounds the weights alone.
TABLE_ENGINES = onnxruntime:fp32 onnxruntime:fp16 onnxruntime:int8 openvino:bf16 $(if $(shell grep -sm1 avx512_bf16 /proc/cpuinfo),,torch:bf16)
eval-table: $(STAMP)  ## all 10,000 validation images on four deployments or five, an hour or more; its exit status is the verdict; writes docs/results/evaluation.md
	$(EVAL) --model $(or $(MODEL),mae-tiny) --images 10000 --deployed 0 --training 30000 --metric knn --metric linear --metric retrieval \
	    $(TABLE_ENGINES:%=--engine %) --only mean --only topk --only abmilp --only abmilp-unlabelled --only ep \
	    --out reports/table --table $(if $(MODEL),docs/results/engines-$(MODEL).md,docs/results/evaluation.md)

known-answers: $(STAMP)  ## are the figures known for mae-tiny and mae-small met again? Tiny ImageNet beside the checkout; exit status 1 if not
	for model in mae-tiny mae-small; do \
	    $(BIN)/mimexport known-answers $$model --data zip:$(LABELLED) || exit 1; done

test: $(STAMP) lint  ## linters, types, import contracts, the whole suite with coverage
	# Two processes of one torch thread each are faster than one of two; who is done first takes from the other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov

test-cpu: $(STAMP)  ## what may come out otherwise on another CPU; with CPU=plain as without bf16, VNNI and AMX
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "cpu and not slow" -n 2 --dist worksteal

SLOW = --timeout 1800 -o faulthandler_timeout=1860
test-slow: $(STAMP)  ## what takes minutes: every backbone class with every aggregator, at full depth once
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal $(SLOW)

REQUESTS ?= 100000
KILLS ?= 200
attack: $(STAMP)  ## hostile requests among correct ones against a limited service, then kills (REQUESTS=, KILLS=): figures, what broke
	PYTHONPATH=tools:tests/support:$(PYTHONPATH) OMP_NUM_THREADS=1 $(BIN)/python -m attack --requests $(REQUESTS) --kills $(KILLS)
	PYTHONPATH=tools:tests/support:$(PYTHONPATH) OMP_NUM_THREADS=1 $(BIN)/python -m attack.over_grpc

# onnxruntime and onnxruntime-gpu exclude each other: an environment of its own.
GPU_VENV  := .venv-gpu
GPU_BIN   := $(GPU_VENV)/bin
GPU_STAMP := $(GPU_VENV)/.installed
$(GPU_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'onnxruntime-gpu[cuda,cudnn]' \
	    -e '.[export,gpu,gpu-decode,fast,openvino,parquet,eval,serve,browse,grpc,tensorrt-rtx,dev]'
	touch $@

gpu-test: $(GPU_STAMP)  ## what needs an NVIDIA GPU: CUDA provider, device protocol, plans opened, parity, CUDA graphs, timing cache
	$(GPU_BIN)/python -m pytest -m gpu -rs

bench-keep: $(STAMP)  ## ViT-B/16 and ViT-L/16 (random weights) with 100, 75, 50, 25 % of the patches: images/s against operations
	$(BIN)/python tools/bench_keep.py

bench-gpu: $(GPU_STAMP)  ## ONNX Runtime on an NVIDIA GPU against torch there: ViT-B/16 (random weights) in fp16 and in fp32
	for precision in fp16 fp32; do \
	    test -d artifacts/bench-b16-$$precision || $(GPU_BIN)/mimexport build --model mae-b16 --agg topk --random-weights \
	        --precision $$precision --out artifacts/bench-b16-$$precision || exit 1; \
	    $(GPU_BIN)/mimexport compile artifacts/bench-b16-$$precision --engine onnxruntime --provider cuda || exit 1; \
	    $(GPU_BIN)/mimexport bench artifacts/bench-b16-$$precision --engine onnxruntime --provider cuda --peers \
	        --batches 1,8,32,128 --json reports/bench/gpu-$$precision.json || exit 1; done
	$(GPU_BIN)/python tools/bench_forms.py artifacts/bench-b16-fp16 --provider cuda --batch 128
	$(GPU_BIN)/python tools/bench_keep.py --engine onnxruntime --provider cuda --precision fp16 --batches 1,128 --jobs 4
	$(GPU_BIN)/python tools/bench_decode.py
	$(GPU_BIN)/python tools/bench_pipeline.py artifacts/bench-b16-fp16 --images 8000 --provider cuda
	MIMEXPORT_PROVIDER=cuda $(GPU_BIN)/python tools/bench_http.py artifacts/bench-b16-fp16 --images 4000 --provider cuda

SCALE_STAMP := $(VENV)/.installed-scale
$(SCALE_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[scale-dev]'
	# botocore asks for an older python-dateutil than the pinned one, and the server does without.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps moto boto3 botocore s3transfer
	touch $@

test-scale: $(SCALE_STAMP)  ## what needs Ray, S3, Spark, LanceDB, PostgreSQL: installs about 1 GB first
	$(BIN)/python -m pytest -m "slow or not slow" $(SLOW) tests/runtime/collection tests/test_scale_examples.py

LABELLED ?= $(wildcard ../shared/data/tiny-imagenet-64.zip)
bench-scale: $(SCALE_STAMP)  ## 20,000 images by the local command and by Ray on two workers: images/s, memory, same vectors
	test -d $(ARTIFACT) || $(BIN)/mimexport build --model mae-tiny --agg topk --out $(ARTIFACT)
	$(BIN)/python tools/bench_scale.py $(ARTIFACT) reports/scale $(LABELLED)

lint: $(STAMP)  ## ruff, mypy, import-linter, docs: links, long sentences, stale pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n 2 & types=$$!; $(BIN)/lint-imports && $(BIN)/python tools/check_docs.py; others=$$?; wait $$types && exit $$others

DOCS_VENV  := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
$(DOCS_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: $(DOCS_STAMP)  ## the site, into site/, warnings as errors; open site/index.html, no network needed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet --strict

reference: $(STAMP)  ## write the pages of docs/reference/ that are made from the code
	$(BIN)/python tools/write_reference.py

picture: $(STAMP)  ## draw docs/images/neighbours.png: neighbours of [cls] and of topk, mae-small
	for agg in cls topk; do $(BIN)/mimexport build --model mae-small --agg $$agg --force || exit 1; done
	$(BIN)/python tools/draw_neighbours.py artifacts/mae-small-cls artifacts/mae-small-topk docs/images/neighbours.png

SHOWN = artifacts/screenshots
screenshots: $(STAMP)  ## take the pictures of the page in docs/images/; needs Chromium and its driver
	$(BIN)/mimexport build --model mae-small --agg cls --out $(SHOWN)/mae-small-cls --force
	$(BIN)/mimexport build --model mae-small --agg topk --with-selection --out $(SHOWN)/mae-small-topk --force
	$(BIN)/python tools/take_screenshots.py $(SHOWN)/mae-small-cls $(SHOWN)/mae-small-topk docs/images

clean:  ## remove the environment and what was built
	rm -rf $(VENV) $(GPU_VENV) $(DOCS_VENV) site artifacts build reports .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
