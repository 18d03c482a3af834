#!/bin/bash
# Many machines at once, each with its distribution's own init, on a host that is far smaller than all of them.
#
#   tests/guest/many.sh            N=20 to have as many as the promise says; wants an image: IMAGE=debian
#
# By hand: it takes minutes and GiBs.  Not executable, so that `make test` leaves it out: bash tests/guest/many.sh
set -u
. "$(dirname "$0")/lib.sh"
n=${N:-20}
image=${IMAGE:-debian}
export GUISE_RUNTIME=$work/runtime
mkdir -m 700 "$GUISE_RUNTIME"
names=$(seq -f "many%g" 1 "$n")
trap 'for name in $names; do "$GUISE" rm --force "$name" >/dev/null 2>&1 & done; wait; rm -rf "$work"' EXIT

for name in $names; do
    ("$GUISE" launch "$image" --name "$name" --memory 256M >/dev/null 2>"$work/$name.err" || echo "$name: $(tail -n 1 "$work/$name.err")" >>"$work/failed") &
done
wait
if [ -s "$work/failed" ]; then not_ok "$n machines start at the same moment" "$(head -n 1 "$work/failed")"; else ok "$n machines start at the same moment"; fi
running=$("$GUISE" ls --json | python3 -c 'import json, sys; print(sum(v["state"] == "running" and v["name"].startswith("many") for v in json.load(sys.stdin)))')
if [ "$running" = "$n" ]; then ok "all are in the list"; else not_ok "all are in the list" "$running of $n run"; fi

: >"$work/failed"
for name in $names; do
    for ((i = 0; i < 60; i++)); do
        state=$(timeout 60 "$GUISE" exec "$name" -- systemctl is-system-running 2>&1)
        [ "$state" != running ] || break
        sleep 5
    done
    [ "$state" = running ] || echo "$name: $state" >>"$work/failed"
    [ "$(timeout 60 "$GUISE" exec "$name" -- hostname 2>&1)" = "$name" ] || echo "$name: another's name" >>"$work/failed"
done
if [ -s "$work/failed" ]; then not_ok "each comes up whole" "$(head -n 1 "$work/failed")"; else ok "each comes up whole"; fi

: >"$work/failed"
for name in $names; do ("$GUISE" stop "$name" --timeout 120 >/dev/null 2>"$work/$name.err" && "$GUISE" rm "$name" >/dev/null 2>"$work/$name.err" || echo "$name: $(tail -n 1 "$work/$name.err")" >>"$work/failed") & done
wait
if [ -s "$work/failed" ]; then not_ok "all stop and go" "$(head -n 1 "$work/failed")"; else ok "all stop and go"; fi
finish
