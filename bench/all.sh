#!/bin/bash
# `make bench`: all benchmarks, one after the other; what they found together in out/bench.json.
#
#   bench/all.sh [--quick]
#
# Exit status 1 when a promise is not kept, or guise failed; which is said in the end.
set -u
bench=$(dirname "$(readlink -f "$0")")
broken=''
rm -f "$bench"/out/*.json
for suite in boot run smp vm disk net share; do
    "$bench/$suite.sh" "$@" || broken="$broken $suite"
done
python3 "$bench/report.py" merge
[ -z "$broken" ] || { echo "not as promised:$broken (the lines with NOT KEPT or FAILED above)" >&2 && exit 1; }
