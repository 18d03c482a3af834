#!/bin/bash
# What a machine costs whose guest has nothing to do: CPU time of all its processes, in percent of one CPU of the host's, and how
# often its vCPUs wake up.
#
#   bench/idle.sh [CPUS...]       1 and 4 vCPUs unless told; SECONDS_IDLE=20, IMAGE=tiny (made here) or one of `guise image ls`
set -u
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
seconds=${SECONDS_IDLE:-20}
if [ "${IMAGE:-tiny}" = tiny ]; then machines_begin; else machines_begin "$IMAGE"; fi

processes() # PID: it and all below it
{
    local child
    echo "$1"
    for child in $(pgrep -P "$1"); do processes "$child"; done
}

# Nanoseconds of CPU time, and how often somebody was put on a CPU.
used() # PID...
{
    local pid
    for pid; do cat "/proc/$pid"/task/*/schedstat 2>/dev/null; done | awk '{ ns += $1; times += $3 } END { print ns + 0, times + 0 }'
}

printf '%-8s %-12s %s\n' vCPUs 'of a CPU, %' 'times on a CPU, /s'
[ $# -gt 0 ] || set -- 1 4
for cpus in "$@"; do
    machine_start idle --cpus "$cpus"
    "$GUISE" exec idle -- true || exit 1
    sleep 5 # what a system does once it has started
    pid=$("$GUISE" inspect idle | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])') || exit 1
    mapfile -t all < <(processes "$pid")
    read -r before times < <(used "${all[@]}")
    sleep "$seconds"
    read -r after again < <(used "${all[@]}")
    awk -v cpus="$cpus" -v ns=$((after - before)) -v times=$((again - times)) -v s="$seconds" \
        'BEGIN { printf "%-8s %-12.2f %.0f\n", cpus, ns / s / 1e7, times / s }'
    "$GUISE" rm --force idle >/dev/null
done
