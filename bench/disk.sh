#!/bin/bash
# Disk throughput, guise beside QEMU's TCG with the same kernel, initrd and program.
#
#   bench/disk.sh [--rounds N] [--seconds N] [--peers LIST] [--guise FILE]
#
# Peers: guise overlay virtio (guise with an NVMe disk over a raw file, over an overlay, and a virtio disk), qemu and
# qemu-virtio (q35, Debian 12's).  The file of 256 MiB is in the host's page cache.  Prints medians; every measurement goes to
# bench/out/disk.tsv (round, peer, metric, value).
# shellcheck disable=SC2046,SC2086 # lists of words
set -u
out=$(cd "$(dirname "$0")" && pwd)/out

. "$(dirname "$0")/../tests/guest/lib.sh" # sets here (tests/guest) and top

rounds=3 seconds=2 peers="guise overlay virtio qemu qemu-virtio"
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=${2:?}; shift ;;
    --seconds) seconds=${2:?}; shift ;;
    --peers) peers=${2//,/ }; shift ;;
    --guise) GUISE=${2:?}; shift ;;
    *) usage ;;
    esac
    shift
done
mkdir -p "$out"
results=$out/disk.tsv
: >"$results"

kernel=$(kernel_image cloud) || exit 1
modules=$(kernel_modules "$kernel" virtio_blk) || exit 1
gcc -std=gnu17 -D_GNU_SOURCE -O2 -static -s -I "$top/bench" -o "$work/diskio" "$top/bench/diskio.c" || exit 1
initrd=$work/disk.cpio
image "$initrd" $(module_additions $modules) --add "$work/diskio:bin/diskio:755" || exit 1
dd if=/dev/urandom of="$work/disk.img" bs=1M count=256 2>/dev/null

measure() # PEER PROGRAM DEVICE DISK
{
    GUISE=$2 "$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$(module_commands $modules) diskio /dev/$3 $seconds" \
        -- --timeout $((60 + 10 * seconds)) --disk "$4" 2>"$work/err" | sed -n "s/^[^	]*	/$round	$1	&/p" >>"$results"
    [ "${PIPESTATUS[0]}" = 0 ] || { echo "$1 failed: $(tail -n 1 "$work/err")" >&2; exit 1; }
}

for ((round = 1; round <= rounds; round++)); do
    for peer in $peers; do
        case $peer in
        guise) measure $peer "$GUISE" nvme0n1 "$work/disk.img" ;;
        overlay)
            rm -f "$work/disk.overlay"
            "$GUISE" disk create "$work/disk.overlay" --base "$work/disk.img" || exit 1
            measure $peer "$GUISE" nvme0n1 "$work/disk.overlay"
            rm -f "$work/disk.overlay"
            ;;
        virtio) measure $peer "$GUISE" vda "$work/disk.img,bus=virtio" ;;
        qemu) measure $peer "$here/with-qemu" nvme0n1 "$work/disk.img" ;;
        qemu-virtio) measure $peer "$here/with-qemu" vda "$work/disk.img,bus=virtio" ;;
        *) usage ;;
        esac
    done
done

awk -F '\t' -v peers="$peers" '
    { v[$2, $3, ++n[$2, $3]] = $4; if (!($3 in seen)) { seen[$3] = 1; order[++metrics] = $3 } }
    function median(peer, metric,    i, j, t, k, a) {
        k = n[peer, metric]
        for (i = 1; i <= k; i++) a[i] = v[peer, metric, i]
        for (i = 1; i <= k; i++) for (j = i + 1; j <= k; j++) if (a[j] + 0 < a[i] + 0) { t = a[i]; a[i] = a[j]; a[j] = t }
        return k ? a[int((k + 1) / 2)] : "-"
    }
    END {
        m = split(peers, p, " ")
        printf "%-24s", ""
        for (i = 1; i <= m; i++) printf "%14s", p[i]
        print ""
        for (k = 1; k <= metrics; k++) {
            printf "%-24s", order[k]
            for (i = 1; i <= m; i++) printf "%14s", median(p[i], order[k])
            print ""
        }
    }' "$results"
