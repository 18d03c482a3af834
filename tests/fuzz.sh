#!/bin/bash
# `make fuzz`: looks for faults until it is stopped (Ctrl-C), or for FUZZ_SECONDS.
#
#   tests/fuzz.sh [BUILD-DIRECTORY]
#
# Random instructions and states, run on this CPU and by the engine, every difference reported with the
# line that repeats it.  The seed is printed; SEED=N repeats a run.
set -euo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
build=${1:-$top/build}
seed=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
echo "seed $seed"
exec "$build/tests/insn/insn-diff" --fuzz --seed "$seed" ${FUZZ_SECONDS:+--seconds "$FUZZ_SECONDS"}
