#!/bin/bash
# What layers of a disk cost: how fast a guest reads with so many of them, and how long it takes to merge them, while it runs and when it
# does not.
#
#   bench/layers.sh [MEGABYTES]     that each layer gets; 32 unless told
#
# A file of 256 MB is read by dd in pieces of 1 MB and, at random, of 4 KB, with the guest's cache emptied before; each layer has an
# eighth of it, spread all over. The longest gap that a program in the guest sees in its clock's steps is measured without, and with the
# command at work. What a command takes includes the removal of files by the host, of many small pieces here: on ext4 that is mounted with
# discard it may be most of it (`removal` says how long the host takes for one file of that kind).
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
megabytes=${1:-32}
machines_begin
guest_program random <<'C'
/* random read|write|gap FILE TIMES: pieces of 4 KB at random places, the same in each run; prints how many a second. gap SECONDS: the
 * longest gap between two looks at the clock, in ms. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    static char piece[4096];
    double began = now(), last = began, most = 0;
    if (strcmp(argv[1], "gap") == 0) {
        puts("ready");
        fflush(stdout);
        while (last < began + atoi(argv[2])) {
            double t = now();
            most = t - last > most ? t - last : most;
            last = t;
        }
        printf("%.1f\n", most * 1000);
        return 0;
    }
    int write_it = strcmp(argv[1], "write") == 0, fd = open(argv[2], write_it ? O_RDWR : O_RDONLY), times = atoi(argv[3]);
    struct stat st;
    fstat(fd, &st);
    uint64_t state = write_it ? (uint64_t)getpid() : 1;
    for (int i = 0; i < times; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        off_t at = (off_t)((state >> 20) % (uint64_t)(st.st_size / 4096) * 4096);
        for (size_t k = 0; write_it && k < sizeof piece; k += 8)
            memcpy(piece + k, &(uint64_t){state * (k + 1)}, 8);
        if ((write_it ? pwrite(fd, piece, sizeof piece, at) : pread(fd, piece, sizeof piece, at)) != sizeof piece)
            return 1;
    }
    fsync(fd);
    printf("%.0f\n", times / (now() - began));
}
C
inside() { "$GUISE" exec bench -- sh -c "$1"; }
seconds() # COMMAND...
{
    local start
    start=$(date +%s%N)
    "$@" >/dev/null || exit 1
    awk -v ns=$(($(date +%s%N) - start)) 'BEGIN { printf "%.2f", ns / 1e9 }'
}
overlays() { echo $((1 + $(find "$GUISE_DATA/vms/bench/layers" -name '*.overlay' 2>/dev/null | wc -l))); }
look() # prints a line
{
    local long random
    long=$(inside 'echo 3 >/proc/sys/vm/drop_caches; cat /root/file >/dev/null; echo 3 >/proc/sys/vm/drop_caches; cut -d" " -f1 /proc/uptime; dd if=/root/file of=/dev/null bs=1M 2>/dev/null; cut -d" " -f1 /proc/uptime' | xargs | awk '{ printf "%.0f", 256 / ($2 - $1) }')
    random=$(inside 'echo 3 >/proc/sys/vm/drop_caches; /root/random read /root/file 8000')
    printf '%-9s reads %s MB/s, %s pieces of 4 KB a second\n' "$(overlays)" "$long" "$random"
}

machine_start bench --memory 512M
machine_give bench random
inside 'head -c 256m /dev/urandom >/root/file; sync' || exit 1
echo overlays
look
for i in $(seq 15); do
    inside "/root/random write /root/file $((megabytes * 256))" >/dev/null || exit 1
    "$GUISE" snapshot bench -q "s$i" >/dev/null || exit 1
    case $i in 3 | 7 | 15) look ;; esac
done
without=$(inside '/root/random gap 10' | tail -n 1)
(inside '/root/random gap 20' >"$work/gap") &
until grep -q ready "$work/gap" 2>/dev/null; do sleep 0.1; done
before=$(overlays)
took=$(seconds "$GUISE" snapshot rm bench s1 s2 s3 s4 s5 s6 s7 s8)
wait $!
printf 'from %s to %s overlays of %s MB while it runs: %s s; longest gap in the guest %s ms, without %s ms\n' "$before" "$(overlays)" \
    "$megabytes" "$took" "$(tail -n 1 "$work/gap")" "$without"
"$GUISE" kill bench
truncate -s 256M "$work/pieces"
"$work/random" write "$work/pieces" $((megabytes * 256)) >/dev/null
printf 'removal of one such file by the host: %s s\n' "$(seconds rm "$work/pieces")"
before=$(overlays)
took=$(seconds "$GUISE" snapshot rm bench s9 s10 s11 s12 s13 s14 s15)
printf 'from %s to %s when it does not: %s s\n' "$before" "$(overlays)" "$took"
"$GUISE" start bench >/dev/null 2>&1
look
