#!/usr/bin/env bash
# All that a machine with a GPU is asked once: build, tests, sanitizers, benchmarks with rivals.
# Offline, from a clean tree, in under nine minutes; it goes on after a failure and says what failed.
#
#   benchmarks/gpu.sh                                   everything
#   STAGES="build bench" benchmarks/gpu.sh              some of it
#   STAGES="build kernels" benchmarks/gpu.sh            the Triton kernels' own tests: long
#   WORKLOADS="rl large" RIVALS="bmm-graph" STAGES=bench benchmarks/gpu.sh
#   DEVICE=cpu TINY=1 benchmarks/gpu.sh                 what a CPU can do of it, on small workloads
#
# OUT: where results and logs go. PYTHON: the interpreter. SECONDS_EACH: of a rival at a workload.
set -uo pipefail
cd "$(dirname "$0")/.."

DEVICE="${DEVICE:-cuda}"
OUT="${OUT:-benchmarks/results/tmp}"
PYTHON="${PYTHON:-python3}"
STAGES="${STAGES:-machine build tests sanitize bench programs compiled}"
[ "$DEVICE" = cpu ] && LIMIT="${LIMIT:-3000}"  # a CPU may be slow, and nobody pays for it
LIMIT="${LIMIT:-530}"
TINY="${TINY:-}"
SECONDS_EACH="${SECONDS_EACH:-0.3}"
WORKLOADS="${WORKLOADS:-}"
RIVALS="${RIVALS:-}"
if [ -n "$TINY" ]; then
    SECONDS_EACH=0.02
    WORKLOADS="${WORKLOADS:-sinusoid-T1-K1 sinusoid-T25-K1}"
    RIVALS="${RIVALS:-loop bmm}"
fi

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # JAX would take most of the GPU's memory

mkdir -p "$OUT"
BEGUN=$(date +%s)
DONE=() FAILED=() SKIPPED=()

left() { echo $((BEGUN + LIMIT - $(date +%s))); }
wanted() { case " $STAGES " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
skip() { SKIPPED+=("$1: $2"); echo "== $1 skipped: $2"; }

# stage NAME SECONDS COMMAND...: run it for so long at most, with its output in OUT/NAME.log too
stage() {
    local name=$1 box start=$SECONDS code
    box=$(box "$2")
    shift 2
    if [ "$box" -lt 5 ]; then
        skip "$name" "no time left"
        return
    fi
    echo "== $name (at most $box s)"
    timeout -k 10 "$box" "$@" 2>&1 | tee "$OUT/$name.log"
    code=${PIPESTATUS[0]}
    told "$name" "$code" $((SECONDS - start))
}

box() { # box SECONDS: so long at most, and no longer than is left
    local seconds=$1
    [ "$DEVICE" = cpu ] && seconds=$((seconds * 5))
    [ "$(left)" -lt "$seconds" ] && seconds=$(left)
    echo "$seconds"
}

told() { # told NAME CODE SECONDS
    local code=$2
    if [ "$code" -eq 0 ]; then
        DONE+=("$1 $3 s")
    else
        [ "$code" -eq 124 ] && code="time over"
        FAILED+=("$1: $code after $3 s, see $OUT/$1.log")
        echo "== $1 FAILED: $code"
    fi
}

# beside NAME SECONDS COMMAND...: as a stage, at the same time as others; `together` waits for them
BESIDE=()
beside() {
    local name=$1 box
    box=$(box "$2")
    shift 2
    if [ "$box" -lt 5 ]; then
        skip "$name" "no time left"
        return
    fi
    echo "== $name (at most $box s, beside others)"
    (
        timeout -k 10 "$box" "$@" >"$OUT/$name.log" 2>&1
        echo "$? $SECONDS" >"$OUT/$name.code"
    ) &
    BESIDE+=("$name $! $SECONDS")
}

together() {
    local name process start code end
    for each in "${BESIDE[@]}"; do
        read -r name process start <<<"$each"
        wait "$process"
        read -r code end <"$OUT/$name.code"
        rm -f "$OUT/$name.code"
        echo "== $name"
        tail -n 40 "$OUT/$name.log"
        told "$name" "$code" $((end - start))
    done
    BESIDE=()
}

on_gpu() { [ "$DEVICE" != cpu ]; }

machine() {
    if command -v nvidia-smi >/dev/null; then nvidia-smi; else echo "no nvidia-smi"; fi
    "$PYTHON" - "$DEVICE" <<'PY'
import json, sys
import torch
from fastmeta.backends.device import find_device
from fastmeta.bench.machine import describe_machine
print(json.dumps(describe_machine(torch.get_num_threads(), find_device(sys.argv[1])), indent=1))
PY
}

build() { # installed, kernels/ is fastmeta.kernels; where that fails, at least csrc/ is built
    "$PYTHON" -m pip install -q --no-build-isolation --no-deps -e . ||
        "$PYTHON" tools/build_native.py || return
    "$PYTHON" -m fastmeta doctor
}

bench() { # bench FILE SECONDS WORKLOADS RIVALS...: what was measured when time is over is kept
    local file=$1 limit=$2 workloads=$3 options=()
    shift 3
    [ "$limit" -gt "$(left)" ] && limit=$(left)
    [ -n "$workloads" ] && options+=(--workload $workloads)
    [ $# -gt 0 ] && options+=(--rival "$@")
    "$PYTHON" -m fastmeta bench --device "$DEVICE" --quick --seconds "$SECONDS_EACH" \
        --time-limit "$((limit - limit / 5))" --json "$OUT/$file" "${options[@]}"
}

sanitized() { # sanitized TOOL
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
        --print-limit 20 "$PYTHON" benchmarks/sanitized.py --device "$DEVICE"
}

export DEVICE OUT PYTHON LIMIT SECONDS_EACH BEGUN
export -f machine build bench sanitized left

wanted machine && stage machine 40 bash -c machine

if wanted build; then
    stage build 120 bash -c build
fi

if wanted tests; then
    if on_gpu; then
        workers=()  # most of the time kernels are compiled
        "$PYTHON" -c "import xdist" 2>/dev/null && workers=(-n 4)
        beside tests 150 "$PYTHON" -m pytest -q -m gpu "${workers[@]}" -p no:cacheprovider \
            --durations=5 tests
    else
        stage tests 300 "$PYTHON" -m pytest -q -rs -p no:cacheprovider tests/gpu
    fi
fi

if wanted kernels; then
    if on_gpu; then
        workers=()  # each compiles for itself
        "$PYTHON" -c "import xdist" 2>/dev/null && workers=(-n "$(($(nproc) / 2 + 1))")
        stage kernels 300 "$PYTHON" -m pytest -q "${workers[@]}" -p no:cacheprovider \
            --ignore tests/kernels/test_compiled.py tests/kernels
    else
        skip kernels "there is no GPU: pytest runs them in the interpreter"
    fi
fi

if wanted sanitize; then
    if ! on_gpu; then
        stage sanitize 120 "$PYTHON" benchmarks/sanitized.py --device cpu
        skip memcheck,racecheck,initcheck "compute-sanitizer needs a GPU"
    elif ! command -v compute-sanitizer >/dev/null; then
        skip sanitize "compute-sanitizer is not in PATH"
    else
        for tool in memcheck racecheck initcheck; do
            beside "$tool" 150 bash -c "sanitized $tool"
        done
    fi
fi
together  # a core each, and all take turns on the GPU

name=$("$PYTHON" - "$DEVICE" <<'PY' 2>/dev/null || echo "$DEVICE"
import sys
import torch
from fastmeta.backends.device import find_device
from fastmeta.bench.machine import describe_machine
print(describe_machine(torch.get_num_threads(), find_device(sys.argv[1]))["device"])
PY
)

if wanted bench; then
    stage bench 170 bash -c "bench '$name.json' 170 '$WORKLOADS' $RIVALS"
fi

small="${WORKLOADS:-sinusoid-T25-K5 sinusoid-T1024-K5 rl}"

if wanted programs; then
    if on_gpu; then
        FASTMETA_CUDA_PROGRAMS=compiled stage programs 45 bash -c \
            "bench '$name-programs.json' 45 '$small' bmm"
    else
        skip programs "they are CUDA's"
    fi
fi

if wanted compiled; then
    if [ -n "$TINY" ]; then
        skip compiled "torch.compile takes minutes"
    else
        stage compiled 110 bash -c \
            "bench '$name-compiled.json' 110 '$small' jax vmap-compiled vmap-reduce-overhead bmm-compiled"
    fi
fi

echo
echo "== results in $OUT, $(($(date +%s) - BEGUN)) s"
for file in "$OUT/$name.json" "$OUT/$name-programs.json" "$OUT/$name-compiled.json"; do
    [ -f "$file" ] && "$PYTHON" -m fastmeta.bench.report --short "$file"
done
# few files beside the results: what brings them back from a GPU may take only some
on_gpu && (cd "$OUT" && tar -czf logs.tgz --remove-files ./*.log)
printf 'done:    %s\n' "${DONE[@]:-nothing}"
[ ${#SKIPPED[@]} -gt 0 ] && printf 'skipped: %s\n' "${SKIPPED[@]}"
[ ${#FAILED[@]} -gt 0 ] && printf 'FAILED:  %s\n' "${FAILED[@]}"
[ ${#FAILED[@]} -eq 0 ]
