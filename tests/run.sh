#!/bin/bash
# All tests: Meson's (unit, insn) and the guest scripts; the last line is "N passed, N failed".
#
#   tests/run.sh [BUILD-DIRECTORY] [SUITE...]     suites: unit insn guest layers; all unless told
#
# A guest script (tests/guest/*.sh, executable) is run with GUISE set, prints "ok NAME" or "not ok NAME reason"
# for each of its checks, and anything else as it likes; one that ends badly without a "not ok" line
# counts as one failure.
set -uo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
build=$(readlink -f "${1:-$top/build}")
shift $(($# > 0))
suites=${*:-layers unit insn guest}
logs=$build/test-logs
mkdir -p "$logs"
passed=0
failed=0
export GUISE=$build/guise

wants() { case " $suites " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

pass() { passed=$((passed + 1)) && echo "ok   $1"; }
fail() { failed=$((failed + 1)) && echo "FAIL $1${2:+: $2}"; }

# cmocka programs print one line a case; anything else counts as one test by its exit status.
count_meson_test() { # NAME LOG STATUS
    local good bad
    good=$(grep -c '^\[       OK \]' "$2")
    bad=$(grep -c '^\[  FAILED  \] [a-z_0-9]*$' "$2")
    if [ "$3" = 0 ]; then
        passed=$((passed + (good ? good : 1)))
        echo "ok   $1${good:+ ($((good ? good : 1)) cases)}"
    else
        passed=$((passed + good))
        failed=$((failed + (bad ? bad : 1)))
        echo "FAIL $1: exit status $3"
        tail -n 40 "$2" | sed 's/^/     /'
    fi
}

meson_suite() { # SUITE
    local name command log status
    while IFS=$'\t' read -r name timeout command; do
        log=$logs/$name.log
        status=0
        (cd "$build" && eval "timeout -k 10 $timeout $command") >"$log" 2>&1 </dev/null || status=$?
        count_meson_test "$1/$name" "$log" "$status"
    done < <(meson introspect --tests "$build" | python3 -c '
import json, shlex, sys
for t in json.load(sys.stdin):
    if any(s.split(":")[-1] == sys.argv[1] for s in t["suite"]):
        env = [k + "=" + v for k, v in t["env"].items()] if isinstance(t["env"], dict) else t["env"]
        print(t["name"].replace(" ", "_"), t["timeout"] or 600, shlex.join((["env"] + env if env else []) + t["cmd"]), sep="\t")
' "$1")
}

guest_script() { # FILE
    local name log status=0 line bad=0 good=0
    name=$(basename "$1" .sh)
    log=$logs/guest-$name.log
    timeout -k 10 "${GUEST_TIMEOUT:-600}" "$1" >"$log" 2>&1 </dev/null || status=$?
    while IFS= read -r line; do
        case $line in
        'ok '*) good=$((good + 1)) && pass "guest/$name: ${line#ok }" ;;
        'not ok '*) bad=$((bad + 1)) && fail "guest/$name: ${line#not ok }" ;;
        esac
    done <"$log"
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        fail "guest/$name" "exit status $status"
        bad=1
    elif [ "$((good + bad))" = 0 ]; then
        fail "guest/$name" "it said nothing"
        bad=1
    fi
    [ "$bad" = 0 ] || tail -n 40 "$log" | sed 's/^/     /'
}

if wants layers; then
    if "$top/tests/layers.sh" >"$logs/layers.log" 2>&1; then pass layers; else fail layers && sed 's/^/     /' "$logs/layers.log"; fi
fi
for suite in unit insn; do
    if wants $suite; then meson_suite $suite; fi
done
if wants guest; then
    for script in "$top"/tests/guest/*.sh; do
        [ ! -x "$script" ] || guest_script "$script"
    done
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
