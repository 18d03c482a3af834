#!/bin/bash
# CPUs that come and go while Linux runs: it starts them, works on them and lets them go, again and again under load.
#
#   ROUNDS=100 tests/guest/cpus.sh   for a long look
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$here/machines.sh"
ROUNDS=${ROUNDS:-8}

inside() { guise exec vm -- sh -c "$1"; }
online() { inside 'cat /sys/devices/system/cpu/online'; }
becomes() { # NAME CPUS: the guest starts what has come by itself
    local now=
    for _ in $(seq 100); do
        now=$(online)
        [ "$now" != "$2" ] || break
        sleep 0.2
    done
    if [ "$now" = "$2" ]; then ok "$1"; else not_ok "$1" "$now instead of $2 are online"; fi
}
events() { guise events vm | grep -c "  $1  "; }

guise launch tiny --name vm --cpus 1,max=4 >"$work/stdout" 2>"$work/stderr" || { not_ok launch "$(tail -n 1 "$work/stderr")" && finish; }
is "one of four is there" "1 of 4" guise cpus vm
is "the guest has it, and knows that more may come" "0 0-3" inside 'cat /sys/devices/system/cpu/online /sys/devices/system/cpu/possible | xargs'

# --- there and back --------------------------------------------------------------------------------------------
is "three come" "4 of 4" guise cpus vm 4
becomes "and are started" 0-3
is "programs run on each" "0 1 2 3" inside 'for m in 1 2 4 8; do taskset $m cut -d" " -f39 /proc/self/stat; done | xargs'
is "three go" "1 of 4" guise cpus vm 1
is "the guest has one" 0 online
is "as JSON" '{"possible": 4, "present": 1, "vary": true}' sh -c "'$GUISE' cpus vm --json | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin), sort_keys=True))'"
if [ "$(events cpus-added) $(events cpu-removed)" = "1 3" ]; then ok "events tell"; else not_ok "events tell" "$(guise events vm | tail -n 3)"; fi

# --- under load --------------------------------------------------------------------------------------------------
sum='awk "BEGIN { for (i = 1; i < 40000; i++) { x = x / 3 + i / 7; n = n + int(x) % 7 }; printf \"%.9f %d\", x, n }"'
inside "mkdir -p /dev/shm && mount -t tmpfs none /dev/shm; $sum >/dev/shm/right"
inside "for k in 1 2 3 4; do (while :; do $sum >/dev/shm/now.\$k
cmp -s /dev/shm/now.\$k /dev/shm/right && echo >>/dev/shm/results || cp /dev/shm/now.\$k /dev/shm/wrong; done >/dev/null 2>&1) & done"
wrong=
for round in $(seq "$ROUNDS"); do
    for count in 4 2 3 1; do
        [ "$(guise cpus vm $count 2>&1)" = "$count of 4" ] || wrong="$wrong $round:$count"
        sleep 0.3
    done
    becomes "round $round" 0 >"$work/becomes" || wrong="$wrong $round:online"
    grep -q ^ok "$work/becomes" || wrong="$wrong $round:$(cat "$work/becomes")"
done
if [ -z "$wrong" ]; then ok "again and again under load"; else not_ok "again and again under load" "$wrong"; fi
is "computing goes on" yes inside '[ $(wc -l </dev/shm/results) -gt 10 ] && [ ! -e /dev/shm/wrong ] && echo yes'
is "nothing is said about it" "" inside 'dmesg | grep -iE "warn|bug:|stall|lockup|unstable|error|ACPI.*(fail|invalid)|not responding|stuck|oops" | grep -v ima:'

# --- snapshots, resets ---------------------------------------------------------------------------------------------
guise cpus vm 3 >/dev/null
becomes "two more" 0-2
status "a snapshot" 0 guise snapshot vm three
is "they go" "1 of 4" guise cpus vm 1
status "it goes back" 0 guise restore vm three
is "and they are there again" "3 of 4" guise cpus vm
is "at work" "0-2 0 1 2" inside '(cat /sys/devices/system/cpu/online; for m in 1 2 4; do taskset $m cut -d" " -f39 /proc/self/stat; done) | xargs'
is "one of them goes" "2 of 4" guise cpus vm 2
is "another comes" "4 of 4" guise cpus vm 4
becomes "and is started, too" 0-3
inside 'echo b >/proc/sysrq-trigger' >/dev/null 2>&1
for _ in $(seq 100); do [ "$(events agent-ready)" -lt 3 ] || break; sleep 0.2; done
is "they stay when the guest starts again" 0-3 online
is "and can go" "1 of 4" guise cpus vm 1

# --- what the guest does ---------------------------------------------------------------------------------------------
guise cpus vm 3 >/dev/null
becomes "two come" 0-2
inside 'echo 1 >/sys/bus/acpi/devices/ACPI0007:02/eject'
sleep 0.5
is "it lets one go by itself" "2 of 4" guise cpus vm
is "and has it no more" 0-1 online
inside 'echo 0 >/sys/firmware/acpi/hotplug/processor/enabled'
status "a guest that does not want to" 1 guise cpus vm 1
says "says so" "guest refuses to let CPU 1 go: 2 are there"
inside 'echo 1 >/sys/firmware/acpi/hotplug/processor/enabled'
is "until it wants to" "1 of 4" guise cpus vm 1
status "there is always one" 2 guise cpus vm 0
status "and never more than max" 2 guise cpus vm 5
guise kill vm
guise rm vm

guise launch tiny --name vm --cpus 2 >/dev/null 2>&1
is "without max all are there" "2 of 2" guise cpus vm
status "and stay" 7 guise cpus vm 1
says "which is said" "takes --cpus N,max=M"
guise kill vm
guise rm vm

guise launch tiny --name vm --cpus 2,max=2 --wait=none --append acpi=off >/dev/null 2>&1
status "a guest without ACPI hears nothing" 1 guise cpus vm 1
says "which is said, too" "has not let its CPUs go within 20 s: 2 are there"
guise kill vm
finish
