#!/bin/bash
# The command line: exit statuses, which stream says what, help, completion, manual pages.
set -u
top=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
GUISE=${GUISE:-$top/build/guise}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

check() { # NAME CONDITION...
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        failures=$((failures + 1))
        echo "not ok $name status $status, stderr: $(head -n 3 "$work/err" | tr '\n' '|')"
    fi
}

run() { # ARGS...: sets status; $work/out, $work/err
    "$GUISE" "$@" >"$work/out" 2>"$work/err" </dev/null
    status=$?
}

says() { grep -qF -- "$1" "$work/err"; }                   # on stderr
prints() { grep -qF -- "$1" "$work/out"; }                 # on stdout
quiet_out() { [ ! -s "$work/out" ]; }
one_sentence() { [ "$(wc -l <"$work/err")" = 1 ] && grep -q '^guise: ' "$work/err"; }

# NAME SENTENCE ARGS...: refused with status 2, one sentence, nothing on stdout
refused() {
    # shellcheck disable=SC2034 # used by eval
    local name=$1 sentence=$2
    shift 2
    run "$@"
    check "$name" eval '[ $status = 2 ] && one_sentence && says "$sentence" && quiet_out'
}

run
check "no command is wrong usage" eval '[ $status = 2 ] && says "usage: guise COMMAND" && quiet_out'
refused "an unknown command is named" "there is no command 'walk'" walk
refused "an unknown option is named" "there is no option --speed" run --speed
refused "a kernel must be given" "--kernel" run
refused "memory needs a unit" "the size 512 has no unit: write 512M or 512G" run --kernel x --memory 512
refused "memory has a least value" "--memory" run --kernel x --memory 1K
refused "cpus must be a number" "--cpus: 'two' is not a whole number" run --kernel x --cpus two
refused "cpus must not be zero" "--cpus: 0 is not between 1 and" run --kernel x --cpus 0
refused "the software engine runs one virtual CPU" "--cpus: the software engine runs one" run --kernel x --cpus 2 --engine soft
refused "an engine must exist" "--engine: 'warp' is not one of auto, soft, kvm" run --kernel x --engine warp
refused "a timeout must not be zero" "--timeout" run --kernel x --timeout 0
refused "a serial line must lead somewhere" "'tape' is not one of stdio, null, file:PATH, socket:PATH" run --kernel x --serial tape
refused "a log item must exist" "--log: 'all' is not one of translate, exc, irq, device" run --kernel x --log all
refused "an option is not given twice" "--memory is given twice" run --kernel x --memory 1G --memory 2G
refused "operands are refused" "'image.img' is one word too many" run --kernel x image.img
refused "completion wants a shell" "name a shell: bash, zsh or fish" completion
refused "completion knows three shells" "name a shell: bash, zsh or fish" completion tcsh

# The first line may say which engine was taken.
run run --kernel /nonexistent/vmlinuz
check "a kernel that is not there is one sentence" eval '[ $status = 1 ] && says "/nonexistent/vmlinuz" && says "No such file" && quiet_out'
run run --kernel "$0"
check "a kernel that is none is one sentence" eval '[ $status = 1 ] && says "$0" && quiet_out'
run run --kernel "$0" --serial socket:/nonexistent/console
check "a serial line that cannot be is one sentence" eval '[ $status = 1 ] && quiet_out'

for command in run doctor completion help version; do
    run help $command
    check "help $command" eval '[ $status = 0 ] && prints "usage: guise $command" && [ ! -s "$work/err" ]'
    cp "$work/out" "$work/help"
    run $command --help
    check "$command --help is the same" eval '[ $status = 0 ] && cmp -s "$work/out" "$work/help"'
done
run --version
check "version" eval '[ $status = 0 ] && grep -Eqx "guise [0-9]+\.[0-9]+\.[0-9]+" "$work/out"'
"$GUISE" --version >/dev/full 2>"$work/err"
status=$?
check "a full disk under stdout is noticed" eval '[ $status = 1 ] && says "standard output"'

# Every option is in the manual page, and the manual has no option that is not there.
for command in run doctor; do
    run help $command
    grep -o -- '--[a-z-]*' "$work/out" | sort -u | grep -vx -e --help >"$work/options"
    sed -n '/^# OPTIONS/,/^# [A-NP-Z]/p' "$top/docs/man/guise-$command.1.scd" | grep '^\*' | grep -o -- '--[a-z-]*' | sort -u >"$work/manual"
    status=0
    check "manual of $command has its options" eval 'grep -vxFf "$work/manual" "$work/options" >"$work/err"; [ ! -s "$work/err" ]'
    check "manual of $command has no other" eval 'grep -vxFf "$work/options" "$work/manual" >"$work/err"; [ ! -s "$work/err" ]'
done

run doctor
check "doctor says whether it can" eval 'case $status in 0) prints "can run here" ;; 7) prints "cannot run here" ;; *) false ;; esac'
run doctor --json
check "doctor --json is JSON" python3 -c '
import json, sys
d = json.load(open(sys.argv[1]))
assert d["schema_version"] == 1 and isinstance(d["can_run"], bool)
ids = [c["id"] for c in d["checks"]]
assert len(ids) == len(set(ids)) and {"cpu_base", "code_cache", "memory", "engine_kvm", "engine_soft"} <= set(ids)
for c in d["checks"]:
    assert c["level"] in ("ok", "limited", "missing") and c["found"]
    assert c["level"] == "ok" or c["why"] and c["fix"]
' "$work/out"

# Completion: bash's is tried, the others are at least syntax that their shell takes, if it is here.
run completion bash
complete_bash() { # WORDS...: what bash offers for the last one
    bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _guise; echo "${COMPREPLY[*]}"' _ "$work/out" "$@"
}
check "bash completes commands" eval '[ "$(complete_bash guise d)" = doctor ]'
check "bash completes options" eval '[ "$(complete_bash guise run --ke)" = --kernel ]'
check "bash completes words" eval '[ "$(complete_bash guise run --engine "")" = "auto soft kvm" ]'
check "bash completes files" eval '[ "$(complete_bash guise run --kernel /etc/host)" = "$(compgen -f /etc/host | tr "\n" " " | sed "s/ $//")" ]'
for shell in zsh fish; do
    run completion $shell
    check "completion for $shell" eval '[ $status = 0 ] && grep -q -- kernel "$work/out"'
    if command -v $shell >/dev/null; then
        check "$shell takes its syntax" $shell -n "$work/out"
    fi
done
exit $((failures > 0))
