#!/bin/bash
# How long a machine takes to move to another process, and how long its guest stands still: by guise's own numbers, and the longest gap
# that a program in the guest sees in its clock's steps, without a migration and with.
#
#   bench/migrate.sh [WORD...]      idle, writing (200 MB/s over 256 MB), postcopy (the same, sent at 50 MB/s at most, so that it does not converge; precopy:
#                                   what comes of it without), copied and shared: idle, with 400 MB on its disk, which is sent, or stays where it is;
#                                   and computing: how fast a program does that runs directly, and while it is sent, slowly; all unless told
#   ROUNDS=5 DESTINATION=unix|tcp   how often, and by what
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
rounds=${ROUNDS:-5}
there="env GUISE_DATA=$work/data2 GUISE_RUNTIME=$work/run2 $GUISE"
machines_end() {
    kill "${receivers[@]}" 2>/dev/null
    $there kill bench 2>/dev/null
}
machines_begin
mkdir -p "$work/data2" && cp -a "$work/data/images" "$work/data2/"
addresses=("unix:$work/here.sock" "unix:$work/there.sock")
if [ "${DESTINATION:-unix}" = tcp ]; then
    addresses=(tcp://127.0.0.1:17117 tcp://127.0.0.1:17118)
    "$GUISE" receive trust "$($there receive key)" && $there receive trust "$("$GUISE" receive key)" || exit 1
fi
"$GUISE" receive "${addresses[0]}" >/dev/null & receivers=($!)
$there receive "${addresses[1]}" >/dev/null & receivers+=($!)

guest_program write <<'C'
/* write MEGABYTES MB-A-SECOND SECONDS: writes to so much memory at that pace, whole pages one behind the other; prints the longest gap
 * between two looks at the clock, in ms, and the pace that it kept. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv)
{
    size_t size = (size_t)atol(argv[1]) << 20, at = 0;
    uint64_t pace = (uint64_t)atol(argv[2]) << 20, written = 0, most = 0, state = 1;
    uint64_t *memory = malloc(size + 1);
    memset(memory, 1, size);
    puts("ready");
    fflush(stdout);
    uint64_t began = now(), end = began + (uint64_t)atol(argv[3]) * 1000000000, last = began;
    while (last < end) {
        uint64_t t = now();
        most = t - last > most ? t - last : most;
        last = t;
        if (!pace || written > (t - began) / 1000 * pace / 1000000) {
            usleep(200);
            continue;
        }
        for (size_t i = 0; i < 512; i++) /* one of four words is noise */
            memory[at / 8 + i] = i % 4 ? written : (state = state * 6364136223846793005ull + 1442695040888963407ull);
        at = (at + 4096) % size;
        written += 4096;
    }
    printf("%.1f %.0f\n", (double)most / 1e6, (double)written / 1048576 / ((double)(now() - began) / 1e9));
}
C
guest_program compute <<'C'
/* compute SECONDS: each second so many million words added to in a table, at random, by the clock. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
    static uint64_t table[1 << 17];
    uint64_t state = 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < atoi(argv[1]); i++) {
        struct timespec a, b;
        uint64_t steps = 0;
        clock_gettime(CLOCK_MONOTONIC, &a);
        do {
            for (unsigned k = 0; k < 1000000; k++) {
                state = state * 6364136223846793005ull + 1442695040888963407ull;
                table[state >> 47] += state; /* 1 MB */
            }
            steps++;
            clock_gettime(CLOCK_MONOTONIC, &b);
        } while (b.tv_sec - a.tv_sec + (b.tv_nsec - a.tv_nsec) / 1e9 < 1);
        printf("%.0f\n", (double)steps / ((double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9));
    }
    return table[42] == 42;
}
C
number() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" "$work/report"; }

side=0 # where it is
on() { if [ $side = 0 ]; then "$GUISE" "$@"; else $there "$@"; fi; }
boot() # SIZE
{
    side=0
    machine_start bench --memory "$1" --disk-size 1G
    machine_give bench write compute
    sleep 1
}
move() # NAME [PROGRAM...]: prints a line
{
    local name=$1 gap=-
    shift
    options=(--storage copy)
    [ "$name" != postcopy ] || options+=(--bandwidth 50M --postcopy)
    [ "$name" != precopy ] || options+=(--bandwidth 50M)
    [ "$name" != shared ] || options=(--storage shared)
    if [ $# -gt 0 ]; then
        on exec bench -- sh -c "$* >/dev/shm.out 2>&1 &"
        until on exec bench -- grep -q ready /dev/shm.out; do sleep 0.1; done
        sleep 1
    fi
    on migrate bench "${addresses[1 - side]}" "${options[@]}" --json --quiet >"$work/report" || exit 1
    side=$((1 - side))
    if [ $# -gt 0 ]; then
        for _ in $(seq 100); do gap=$(on exec bench -- sed -n 2p /dev/shm.out) && [ -n "$gap" ] && break || sleep 0.3; done
    fi
    printf '%-10s %8d %10.1f %8d %8d %8d   %s\n' "$name" "$(number elapsed_ms)" "$(($(number downtime_us) / 100))e-1" \
        "$(number rounds)" "$(($(number sent_bytes) >> 20))" "$(number throttle_percent)" "$gap"
}

[ $# -gt 0 ] || set -- idle writing copied shared postcopy precopy computing
printf '%-10s %8s %10s %8s %8s %8s   %s\n' '' 'ms' 'still ms' rounds 'sent MB' 'slowed %' 'gap in the guest ms, its pace MB/s'
for what; do
    boot 512M
    case $what in
    idle) for _ in $(seq "$rounds"); do move idle; done ;;
    copied | shared)
        on exec bench -- sh -c 'head -c 400000000 /dev/urandom >/root/noise; sync'
        for _ in $(seq "$rounds"); do move "$what"; done
        ;;
    postcopy | precopy) for _ in $(seq "$rounds"); do move "$what" /root/write 256 200 25; done ;;
    writing) for _ in $(seq "$rounds"); do move writing /root/write 256 200 15; done ;;
    computing)
        on exec bench -- sh -c '/root/compute 60 >/dev/shm.out 2>&1 &'
        sleep 6
        direct=$(on exec bench -- tail -n 1 /dev/shm.out)
        on migrate bench "${addresses[1]}" --json --quiet --bandwidth 8M >"$work/report" & moving=$!
        sleep 6
        printf '%-10s %s million steps/s directly, %s while it is being sent\n' computing "$direct" "$(on exec bench -- tail -n 1 /dev/shm.out)"
        wait $moving && side=1
        ;;
    esac
    on rm --force bench
done
