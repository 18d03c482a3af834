#!/bin/bash
# `make fuzz`: looks for faults until it is stopped (Ctrl-C), or for FUZZ_SECONDS a target, or up to FUZZ_RUNS executions.
#
#   tests/fuzz.sh [BUILD-DIRECTORY [TARGET...]]
#   tests/fuzz.sh status [TARGET...]
#
# Targets: the programs of fuzz/ (README.md there), and `insn`: random instructions and states, run on this CPU and by
# the engine, every difference reported with the line that repeats it.  Its seed is printed; SEED=N repeats a run.
# All of them unless told.  Stops at the first fault; the input that shows it is then in build-fuzz.
#
# Each run of a program is added to its count in build-fuzz/count; `status` shows the counts.  FUZZ_RUNS=N goes on with
# each program until its count is N, so that such a campaign can be stopped and taken up again, and two at once (for two
# CPUs) share the work.
set -euo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
build=${1:-$top/build}
shift $(($# > 0))
fuzzers=$top/build-fuzz
chunk=30 # seconds: what a campaign that is killed can lose
crowd=2000 # files in a corpus before those that add nothing are thrown away
seconds=${FUZZ_SECONDS:-60}
seed=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}

mapfile -t all < <(sed -n "s/^ *{'name': '\([a-z_0-9]*\)'.*/\1/p" "$top/fuzz/meson.build")

build_fuzzers() {
    "$top/scripts/setup.sh" fuzz
    mkdir -p "$fuzzers"
    (
        flock 9
        [ -e "$fuzzers/build.ninja" ] || CC=clang meson setup "$fuzzers" "$top" -Dfuzz=true -Dwerror=false \
            --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false -Dc_args=-fsanitize=fuzzer-no-link >/dev/null
        ninja -C "$fuzzers" --quiet fuzzers
    ) 9>"$fuzzers/lock"
}

# Arrays `program` and `corpora` (its own first) of a target.  Scheduling by entropy takes longer than most inputs do.
prepare() { # NAME
    local longest
    longest=$(sed -n "s/^ *{'name': '$1'.*'longest': \([0-9]*\).*/\1/p" "$top/fuzz/meson.build")
    corpora=("$fuzzers/corpus/$1")
    mkdir -p "${corpora[@]}" "$fuzzers/count"
    [ ! -d "$top/fuzz/corpus/$1" ] || corpora+=("$top/fuzz/corpus/$1")
    program=(env UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=1:quarantine_size_mb=4
        "$fuzzers/fuzz/fuzz_$1" -timeout=20 -rss_limit_mb=2048 -entropic=0 -max_len="${longest:-1024}"
        -artifact_prefix="$fuzzers/")
}

# Seconds, and executions at most (0: any number).  What it says of a fault is shown.
run_target() { # NAME SECONDS EXECUTIONS
    local log=$fuzzers/count/$1.log status=0 began=${EPOCHREALTIME/[.,]/}
    local limits=(-max_total_time="$2")
    [ "$3" = 0 ] || limits+=(-runs="$3")
    # Through a pipe: a target may limit how long its files get.
    { "${program[@]}" "${limits[@]}" -print_final_stats=1 "${corpora[@]}" 2>&1 || echo "stat::failed"; } |
        tail -n 300 | grep -avE '^#[0-9]+[[:space:]]+(NEW|REDUCE|pulse|RELOAD)' >"$log" || true
    ! grep -qa '^stat::failed' "$log" || status=1
    add_to_count "$1" $((${EPOCHREALTIME/[.,]/} - began)) "$log"
    [ $status = 0 ] || { grep -avE '^(#|stat::)' "$log" >&2; echo "fuzz.sh: $1 has found a fault" >&2; }
    return $status
}

count_of() { # NAME: executions, microseconds, files in the corpus, edges
    cat "$fuzzers/count/$1" 2>/dev/null || echo 0 0 0 0
}

add_to_count() { # NAME MICROSECONDS LOG
    local n us files edges new last
    read -r n us files edges < <(count_of "$1")
    new=$(sed -n 's/^stat::number_of_executed_units: *//p' "$3")
    last=$(grep -aoE 'cov: [0-9]+ .*corp: [0-9]+' "$3" | tail -n 1 || true)
    [ -z "$last" ] || read -r files edges <<<"$(sed -E 's/cov: ([0-9]+).*corp: ([0-9]+)/\2 \1/' <<<"$last")"
    echo $((n + ${new:-0})) $((us + $2)) "$files" "$edges" >"$fuzzers/count/$1.new"
    mv "$fuzzers/count/$1.new" "$fuzzers/count/$1"
}

# Of many files, those that reach something which no shorter one reaches.
shrink_corpus() { # NAME
    local kept=$fuzzers/corpus/$1.kept
    [ "$(find "${corpora[0]}" -type f | wc -l)" -gt $crowd ] || return 0
    rm -rf "$kept"
    mkdir "$kept"
    "${program[@]}" -merge=1 "$kept" "${corpora[0]}" >/dev/null 2>&1 || { rm -rf "$kept"; return 0; }
    rm -rf "${corpora[0]}"
    mv "$kept" "${corpora[0]}"
}

# A target at which another campaign is at work is left to it.
campaign() { # NAME EXECUTIONS
    local n
    prepare "$1"
    exec 8>"$fuzzers/count/$1.lock"
    flock -n 8 || return 0
    shrink_corpus "$1" 8>&-
    while read -r n _ < <(count_of "$1") && [ "$n" -lt "$2" ]; do
        echo "$1: $n of $2"
        run_target "$1" $chunk $(($2 - n)) 8>&-
    done
    exec 8>&-
}

show_status() { # NAME...
    local target n us files edges
    printf '%-16s %12s %12s %8s %8s\n' target executions executions/s corpus edges
    for target; do
        [ "$target" != insn ] || continue
        read -r n us files edges < <(count_of "$target")
        printf '%-16s %12d %12d %8d %8d\n' "$target" "$n" $((us ? n * 1000000 / us : 0)) "$files" "$edges"
    done
}

for target; do
    [ "$target" = insn ] || [ -e "$top/fuzz/$target.c" ] || { echo "fuzz.sh: there is no target $target" >&2; exit 2; }
done
if [ "$build" = status ]; then
    [ $# -gt 0 ] || set -- "${all[@]}"
    show_status "$@"
    exit
fi
if [ -n "${FUZZ_RUNS:-}" ]; then
    runs=$(printf %.0f "$FUZZ_RUNS" 2>/dev/null) || { echo "fuzz.sh: FUZZ_RUNS is a number of executions, such as 1e7" >&2; exit 2; }
    [ $# -gt 0 ] || set -- "${all[@]}"
    build_fuzzers
    for target; do
        [ "$target" = insn ] || campaign "$target" "$runs"
    done
    show_status "$@"
    exit
fi
[ $# -gt 0 ] || set -- insn "${all[@]}"
[ "$*" = insn ] || build_fuzzers
while :; do
    for target; do
        echo "$target: $seconds s"
        if [ "$target" = insn ]; then
            echo "seed $seed"
            "$build/tests/insn/insn-diff" --fuzz --seed "$seed" --seconds "$seconds"
        else
            prepare "$target"
            run_target "$target" "$seconds" 0
            show_status "$target"
        fi
    done
    [ -z "${FUZZ_SECONDS:-}" ] || break
    seed=$((seed + 1))
done
