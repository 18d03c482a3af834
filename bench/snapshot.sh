#!/bin/bash
# How long a guest stands still for a snapshot, by its own clock, and how long a restore takes until it runs again.
#
#   bench/snapshot.sh [MEMORY...]         512M and 4G unless told; ROUNDS=5 restores each
#
# A program in the guest reads the clock all the time and keeps its longest gap: one number without a snapshot, one with.
# A restore is timed from the command's start to its end, with the machine stopped before.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
rounds=${ROUNDS:-5}
machines_begin
guest_program gap <<'C'
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* gap SECONDS MEGABYTES: writes to so much memory meanwhile */
int main(int argc, char **argv)
{
    size_t size = (size_t)atol(argv[2]) << 20;
    char *memory = malloc(size);
    memset(memory, 1, size);
    puts("ready");
    fflush(stdout);
    uint64_t end = now() + (uint64_t)atol(argv[1]) * 1000000000, last = now(), most = 0;
    for (size_t at = 0; last < end; at = (at + 4096) % size) {
        memory[at]++;
        uint64_t t = now();
        most = t - last > most ? t - last : most;
        last = t;
    }
    printf("%.1f\n", (double)most / 1e6);
}
C

measure() # MEGABYTES COMMAND...: the longest gap in ms while the command runs
{
    local megabytes=$1 out=$work/out
    shift
    "$GUISE" exec bench -- /root/gap 8 "$megabytes" >"$out" &
    until grep -q ready "$out" 2>/dev/null; do sleep 0.1; done
    sleep 1
    "$@" >/dev/null 2>>"$work/said"
    wait $!
    tail -n 1 "$out"
}

printf '%-8s %-10s %-22s %-22s %s\n' memory written 'longest gap, ms' 'with a snapshot, ms' 'restore, ms (each)'
[ $# -gt 0 ] || set -- 512M 4G
for memory in "$@"; do
    machine_start bench --memory "$memory"
    machine_give bench gap
    without=$(measure 100 sleep 3)
    with=$(measure 100 "$GUISE" snapshot bench one)
    times=
    for _ in $(seq "$rounds"); do
        "$GUISE" kill bench
        start=$(date +%s%N)
        "$GUISE" restore bench one || exit 1
        times="$times $((($(date +%s%N) - start) / 1000000))"
        sleep 1
    done
    printf '%-8s %-10s %-22s %-22s %s\n' "$memory" 100M "$without" "$with" "${times# }"
    "$GUISE" rm --force bench
done
