#!/bin/bash
# Everything that judges the sources without running them.  `make lint`; or scripts/lint.sh BUILD CHECK...
#
# Checks: layers format man shell cppcheck tidy.  The last line is "N passed, N failed".
set -uo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
build=$(readlink -f "${1:-$top/build}")
shift $(($# > 0))
cd "$top" || exit 1
mapfile -t sources < <(find src tests bench fuzz -name out -prune -o -name '*.[ch]' -print | sort)
mapfile -t units < <(find src -name '*.c' | sort)
mapfile -t scripts < <(grep -rlE --exclude-dir=out '^#!/bin/(ba)?sh' scripts tests bench .ci | sort)
checks=${*:-layers format man shell cppcheck tidy}
passed=0
failed=0

layers() { tests/layers.sh; }

format() { clang-format --dry-run -Werror "${sources[@]}"; }

man() {
    local page status=0 out
    out=$(mktemp)
    for page in docs/man/*.scd; do
        scdoc <"$page" >"$out" || status=1
        # STYLE messages are about scdoc's own output.
        mandoc -T lint -W warning "$out" | sed "s|^|$page: |" | grep -v 'missing date' && status=1
    done
    rm -f "$out"
    return $status
}

# SC2154, SC2115: a variable that a sourced file sets, and never empty.
shell() { shellcheck -x -P "$top" -S warning -e SC2154,SC2115 "${scripts[@]}"; }

cppcheck_() {
    cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability --inline-suppr \
        --library=scripts/cppcheck.cfg \
        --suppressions-list=scripts/cppcheck-suppressions.txt -j "$(nproc)" -I src -I "$build/src" src
}

# One file a run: version 14 reports va_lists as uninitialized from the second file on.  Its driver does
# not know all of gcc's options.
tidy() {
    local commands status
    commands=$(mktemp -d)
    # What the program for guests shares with others is compiled twice: once is enough.
    python3 -c '
import json, sys
once = {c["file"]: c for c in json.load(open(sys.argv[1]))}
for c in once.values():
    c["command"] = c["command"].replace("-fno-tree-loop-distribute-patterns", "").replace("-fno-sanitize=all", "")
json.dump(list(once.values()), sys.stdout)' "$build/compile_commands.json" >"$commands/compile_commands.json"
    printf '%s\n' "${units[@]}" | xargs -P "$(nproc)" -n 1 clang-tidy --quiet -p "$commands" 2>/dev/null
    status=$?
    rm -rf "$commands"
    return $status
}

for check in $checks; do
    name=$check
    [ "$check" != cppcheck ] || name=cppcheck_
    if output=$($name 2>&1); then
        passed=$((passed + 1))
        echo "ok   $check"
    else
        failed=$((failed + 1))
        echo "FAIL $check"
        printf '%s\n' "$output" | head -n 200 | sed 's/^/     /'
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
