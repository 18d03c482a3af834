# shellcheck shell=bash
# What the suites share that work with machines by name: sourced behind lib.sh.  They have directories of their own, the
# image `tiny`, and what is left of them in the end is killed and removed.
export GUISE_DATA=$work/data GUISE_RUNTIME=$work/run
export -n GUISE_ENGINE
cleanup()
{
    "$GUISE" ls --json 2>/dev/null | grep -o '"pid": [0-9]*' | grep -o '[0-9]*' | xargs -r kill -9
    if mountpoint -q "$work/full"; then umount "$work/full"; fi # a suite's own, of a disk that is full
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work" || exit 1
tiny_image tiny || { not_ok image "cannot be made" && finish; }

guise() { "$GUISE" "$@"; }

is() # NAME EXPECTED COMMAND...: its standard output is exactly that
{
    local name=$1 expected=$2 got
    shift 2
    got=$("$@" 2>"$work/stderr")
    if [ "$got" = "$expected" ]; then ok "$name"; else not_ok "$name" "'$got' instead of '$expected'; $(tail -n 1 "$work/stderr")"; fi
}

status() # NAME EXPECTED COMMAND...: its exit status
{
    local name=$1 expected=$2 got=0
    shift 2
    "$@" >"$work/stdout" 2>"$work/stderr" </dev/null || got=$?
    if [ "$got" = "$expected" ]; then ok "$name"; else not_ok "$name" "status $got instead of $expected; $(tail -n 1 "$work/stderr")"; fi
}

says() # NAME PATTERN: of the last status
{
    if grep -q "$2" "$work/stderr"; then ok "$1"; else not_ok "$1" "$(tail -n 1 "$work/stderr")"; fi
}
