#!/bin/bash
# The tables of bench/report.py: medians, ratios, and what a promise that is not kept, a failure and a wrong result lead to.
set -u
top=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
BENCH_OUT=$(mktemp -d)
export BENCH_OUT
trap 'rm -rf "$BENCH_OUT"' EXIT
failures=0

report() { python3 "$top/bench/report.py" table vm --peers "guise qemu" >"$BENCH_OUT/table" 2>&1; }

measured() # LINE...: round, peer, name, unit, value, check, with commas between
{
    printf '%s\n' "$@" | tr , '\t' >"$BENCH_OUT/vm.tsv"
}

check() # NAME STATUS TEXT: the table has this status and this text
{
    local status=0
    report || status=$?
    if [ $status = "$2" ] && grep -q -- "$3" "$BENCH_OUT/table"; then
        echo "ok $1"
    else
        failures=$((failures + 1))
        echo "not ok $1 status $status, wanted $2 and '$3'"
        sed 's/^/    /' "$BENCH_OUT/table"
    fi
}

first="command to first output"
measured "1,guise,$first,s,0.8,-" "2,guise,$first,s,0.6,-" "3,guise,$first,s,0.7,-" "1,qemu,$first,s,2.1,-"
check "median and ratio" 0 "0.700 s .*3.00 *kept"
python3 -c '
import json, sys
m = json.load(open(sys.argv[1]))["measurements"]["command to first output"]
assert m["peers"]["guise"]["values"] == [0.8, 0.6, 0.7] and m["ratios"]["tcg/guise"] == 3, m' "$BENCH_OUT/vm.json" &&
    echo "ok the same for programs" || { failures=$((failures + 1)) && echo "not ok the same for programs"; }
measured "1,guise,$first,s,0.8,-" "1,qemu,$first,s,1.2,-"
check "a promise that is not kept" 1 "promised $first: guise/tcg <= 0.5; it is 0.67: NOT KEPT"
measured "1,guise,failed,-,time was up,-" "1,qemu,$first,s,1.2,-"
check "guise failed" 1 "FAILED round 1, guise: time was up"
measured "1,guise,$first,s,0.5,-" "1,qemu,failed,-,time was up,-"
check "only QEMU failed" 0 "FAILED round 1, qemu: time was up"
measured "1,guise,random 4 KiB reads,1/s,3000,-" "1,qemu,random 4 KiB reads,1/s,1000,-"
check "a rate: more is better" 0 "3000 1/s *1000 1/s *3.00"
measured "1,guise,sum,s,1,aa" "1,qemu,sum,s,1,bb"
check "a wrong result" 1 "sum gave bb, others aa"
exit $((failures > 0))
