#!/bin/bash
# `make fuzz`: looks for faults until it is stopped (Ctrl-C), or for FUZZ_SECONDS a target.
#
#   tests/fuzz.sh [BUILD-DIRECTORY [TARGET...]]
#
# Targets: the programs of fuzz/ (README.md there), and `insn`: random instructions and states, run on this CPU and by
# the engine, every difference reported with the line that repeats it.  Its seed is printed; SEED=N repeats a run.
# All of them unless told.  Stops at the first fault; the input that shows it is then in build-fuzz.
set -euo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
build=${1:-$top/build}
shift $(($# > 0))
fuzzers=$top/build-fuzz
seconds=${FUZZ_SECONDS:-60}
seed=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}

mapfile -t all < <(sed -n "s/^ *{'name': '\([a-z_0-9]*\)'.*/\1/p" "$top/fuzz/meson.build")
[ $# -gt 0 ] || set -- insn "${all[@]}"

build_fuzzers() {
    "$top/scripts/setup.sh" fuzz
    [ -e "$fuzzers/build.ninja" ] || CC=clang meson setup "$fuzzers" "$top" -Dfuzz=true -Dwerror=false \
        --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false -Dc_args=-fsanitize=fuzzer-no-link >/dev/null
    ninja -C "$fuzzers" --quiet fuzzers
}

run_target() { # NAME
    local corpus=$fuzzers/corpus/$1 seeds=$top/fuzz/corpus/$1
    mkdir -p "$corpus"
    [ -d "$seeds" ] || seeds=
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=1 \
        "$fuzzers/fuzz/fuzz_$1" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$fuzzers/" -verbosity=0 "$corpus" ${seeds:+"$seeds"} 2>&1 | { grep -vE '^(INFO:|#|"|stat::(new|slowest|peak)|Done|[[:space:]]*NEW_FUNC)' || true; }
}

for target; do
    [ "$target" = insn ] || [ -e "$top/fuzz/$target.c" ] || { echo "fuzz.sh: there is no target $target" >&2; exit 2; }
done
[ "$*" = insn ] || build_fuzzers
while :; do
    for target; do
        echo "$target: $seconds s"
        if [ "$target" = insn ]; then
            echo "seed $seed"
            "$build/tests/insn/insn-diff" --fuzz --seed "$seed" --seconds "$seconds"
        else
            run_target "$target"
        fi
    done
    [ -z "${FUZZ_SECONDS:-}" ] || break
    seed=$((seed + 1))
done
