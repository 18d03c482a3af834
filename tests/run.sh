#!/bin/bash
# All tests: Meson's (unit, insn) and the guest scripts; the last line is "N passed, N failed".
#
#   tests/run.sh [BUILD-DIRECTORY] [SUITE...]     suites: layers unit insn cli guest; all unless told
#
# A script (tests/cli/*.sh, tests/guest/*.sh, executable) is run with GUISE set.  It prints "ok NAME" or
# "not ok NAME reason" for each of its checks ("skip NAME reason" for one that cannot be tried here), and anything
# else as it likes.  Without such a line it counts as one check, by its exit status; 77 means that it cannot be tried
# here, and why is its last line.
set -uo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
build=$(readlink -f "${1:-$top/build}")
shift $(($# > 0))
suites=${*:-layers unit insn cli guest}
logs=$build/test-logs
mkdir -p "$logs"
passed=0
failed=0
skipped=0
export GUISE=$build/guise

wants() { case " $suites " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

pass() { passed=$((passed + 1)) && echo "ok   $1"; }
fail() { failed=$((failed + 1)) && echo "FAIL $1${2:+: $2}"; }

skip() { skipped=$((skipped + 1)) && echo "skip $1${2:+: $2}"; }

# cmocka programs print one line a case; anything else counts as one test by its exit status, and its last
# line is shown.
count_meson_test() { # NAME LOG STATUS
    local good bad last
    good=$(grep -c '^\[       OK \]' "$2")
    bad=$(grep -c '^\[  FAILED  \] [a-z_0-9]*$' "$2")
    last=$(tail -n 1 "$2")
    if [ "$3" = 77 ]; then
        skip "$1" "$last"
    elif [ "$3" != 0 ]; then
        passed=$((passed + good))
        failed=$((failed + (bad ? bad : 1)))
        echo "FAIL $1: exit status $3"
        tail -n 40 "$2" | sed 's/^/     /'
    elif [ "$good" != 0 ]; then
        passed=$((passed + good))
        echo "ok   $1 ($good cases)"
    else
        pass "$1${last:+: $last}"
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

script() { # SUITE FILE
    local name log status=0 line bad=0 good=0 omitted=0
    name=$1/$(basename "$2" .sh)
    log=$logs/${name/\//-}.log
    timeout -k 10 "${SCRIPT_TIMEOUT:-900}" "$2" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" = 77 ]; then
        skip "$name" "$(tail -n 1 "$log")"
        return
    fi
    while IFS= read -r line; do
        case $line in
        'ok '*) good=$((good + 1)) && pass "$name: ${line#ok }" ;;
        'not ok '*) bad=$((bad + 1)) && fail "$name: ${line#not ok }" ;;
        'skip '*) omitted=$((omitted + 1)) && skip "$name: ${line#skip }" ;;
        esac
    done <"$log"
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        bad=1
        fail "$name" "exit status $status"
    elif [ "$((good + bad + omitted))" = 0 ]; then
        pass "$name"
    fi
    [ "$bad" = 0 ] || tail -n 40 "$log" | sed 's/^/     /'
}

if wants layers; then
    if "$top/tests/layers.sh" >"$logs/layers.log" 2>&1; then pass layers; else fail layers && sed 's/^/     /' "$logs/layers.log"; fi
fi
for suite in unit insn; do
    if wants $suite; then meson_suite $suite; fi
done
for suite in cli guest; do
    for file in "$top/tests/$suite"/*.sh; do
        if wants $suite && [ -x "$file" ]; then script $suite "$file"; fi
    done
done

if [ "$skipped" != 0 ]; then echo "$skipped could not be tried here"; fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
