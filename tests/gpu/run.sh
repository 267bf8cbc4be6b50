#!/usr/bin/env bash
# All checks and benchmarks that need a GPU, in one call of less than 9 minutes, no network: tests/gpu/run.sh [--list]
#
# The machine needs Python 3.11 or newer with torch, triton, opencv, pyarrow and pytest. Other missing packages, such as Ray,
# may be packed in .gpu: .gpu/activate is sourced if it exists. --list prints the stages and runs none. Logs and figures (one JSON
# line each) go to $OUT, by default outputs/gpu. Exit status: 0 if every stage succeeded, 3 without a GPU, otherwise 1.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-outputs/gpu}
failed=()

stage() { # name, time limit in seconds, command
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  if [ "${list:-}" ]; then
    echo "$name $limit $*"
    return
  fi
  echo "== $name (at most $limit s): $*"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed+=("$name: exit status $status$([ "$status" -eq 124 ] && echo ", timed out")")
  echo "== $name took $((SECONDS - start)) s"
}

stages() {
  # Correctness first: the time of a wrong result means nothing.
  # Without tests/conftest.py, which needs what no GPU machine has (MLflow, moto) and starts clusters.
  stage correctness 190 python3 -m pytest -q "${parallel[@]}" -p no:cacheprovider -o filterwarnings=default --confcutdir=tests/ccnet \
    tests/ccnet/test_kernels.py tests/ccnet/test_criss_cross.py tests/ccnet/test_attention.py \
    tests/ccnet/test_host_waits.py tests/ccnet/test_precision.py
  stage operator 80 python3 -m jobs.benchmark jobs/configs/bench_operator.yaml "benchmark.maps=[[8, 512, 97, 97]]" \
    train.precision=bf16
  stage network 160 python3 -m jobs.benchmark jobs/configs/bench_step.yaml "${whole[@]}" benchmark.rounds=1 benchmark.steps=50
  stage launchers 100 python3 -m jobs.benchmark jobs/configs/bench_launchers.yaml "${whole[@]}" benchmark.rounds=6
}

whole=(model.backbone=resnet101 data.crop_size=769 train.global_batch=8 train.precision=bf16)
parallel=()
! python3 -c "import xdist" 2>/dev/null || parallel=(-n 8) # in parallel, because each kernel is compiled for each shape
if [ "${1:-}" = --list ]; then
  list=yes
  stages
  exit 0
fi
# shellcheck source=/dev/null
[ ! -f .gpu/activate ] || . .gpu/activate || exit 1
python3 - <<'PY' || exit
import importlib.util
import sys

needed = ("torch", "triton", "cv2", "pyarrow", "pytest", "jaxtyping", "pydantic", "yaml", "safetensors", "fsspec",
          "s3fs", "ray")
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    fix = "install them, or pack them into .gpu with an activate that puts them on PYTHONPATH"
    sys.exit(f"missing packages: {', '.join(missing)}; {fix}")
import torch
import triton

if not torch.cuda.is_available():
    print("no GPU here: nothing was run, nothing was measured", file=sys.stderr)
    sys.exit(3)
print(torch.cuda.get_device_name(), "Python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)
PY
mkdir -p "$OUT"
stages
grep -h '^{' "$OUT"/*.log >"$OUT/figures.jsonl"
echo "== $SECONDS s in all; figures: $OUT/figures.jsonl"
[ ${#failed[@]} -eq 0 ] && exit 0
printf 'FAILED %s\n' "${failed[@]}"
exit 1
