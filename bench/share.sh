#!/bin/bash
# How fast a shared folder is: guise beside QEMU's TCG with virtiofsd (as root), the same kernel, initrd and directory.
#
#   bench/share.sh [--rounds N] [--peers LIST] [--guise FILE]
#
# Peers: guise qemu memory.  `memory` is guise's guest on a file system in its own memory, for what the guest itself costs.
# Small files have 10 bytes; streams are 128 MiB in pieces of 1 MiB; the tree is Debian's linux-libc-dev, unpacked by
# GNU tar.  Prints medians; every measurement goes to bench/out/share.tsv (round, peer, metric, value).
# shellcheck disable=SC2046,SC2086 # lists of words
set -u
out=$(cd "$(dirname "$0")" && pwd)/out

. "$(dirname "$0")/../tests/guest/lib.sh" # sets here (tests/guest) and top

rounds=3 peers="guise qemu memory"
[ "$(id -u)" = 0 ] || peers="guise memory"
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=${2:?}; shift ;;
    --peers) peers=${2//,/ }; shift ;;
    --guise) GUISE=${2:?}; shift ;;
    *) usage ;;
    esac
    shift
done
mkdir -p "$out"
results=$out/share.tsv
: >"$results"

kernel=$(kernel_image cloud) || exit 1
modules=$(kernel_modules "$kernel" virtiofs) || exit 1
gcc -std=gnu17 -O2 -static -o "$work/share" "$here/devices/share.c" || exit 1
packages_extract "$GUISE_CACHE/sets/bench-tree" bookworm linux-libc-dev || exit 1
tar -C "$GUISE_CACHE/sets/bench-tree" -cf "$work/tree.tar" usr/include
files=$(tar -tf "$work/tree.tar" | wc -l)
initrd=$GUISE_CACHE/bench-share.cpio
image_kind=packages image "$initrd" tar $(module_additions $modules) --add "$work/share:bin/share:755" \
    --add "$work/tree.tar:tree.tar" || exit 1
folder=$(mktemp -d /dev/shm/guise-share.XXXXXX) # in memory: what disks do is not the question
trap 'rm -rf "$work" "$folder"' EXIT

script='share bench .
start=$(cut -d" " -f1 /proc/uptime)
mkdir tree && tar -C tree -xf /tree.tar
cut -d" " -f1 /proc/uptime | awk -v s=$start "{ print \"untar, files/s\t\" '$files' / (\$1 - s) }"
echo 3 >/proc/sys/vm/drop_caches
start=$(cut -d" " -f1 /proc/uptime)
find tree -newer /tree.tar | wc -l >/dev/null
cut -d" " -f1 /proc/uptime | awk -v s=$start "{ print \"find, files/s\t\" '$files' / (\$1 - s) }"'

for ((round = 1; round <= rounds; round++)); do
    for peer in $peers; do
        rm -rf "$folder"/*
        program=$GUISE prepare="mount -t virtiofs share0 /mnt"
        [ "$peer" != qemu ] || program=$here/with-qemu
        [ "$peer" != memory ] || prepare="mount -t tmpfs -o size=300m x /mnt"
        GUISE=$program "$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" \
            "$(module_commands $modules) mkdir -p /mnt && $prepare && cd /mnt && { $script
            }" -- --share "$folder" --timeout 300 2>"$work/err" | tr -d '\r' |
            sed -n "s/^[^	]*	/$round	$peer	&/p" >>"$results"
        [ "${PIPESTATUS[0]}" = 0 ] || { echo "$peer failed: $(tail -n 1 "$work/err")" >&2; exit 1; }
    done
done

awk -F '\t' -v peers="$peers" '
    { key = $3 SUBSEP $2; values[key] = values[key] " " $4; if (!($3 in seen)) { seen[$3] = 1; metric[++n] = $3 } }
    function median(text,  v, c, i, j, t) {
        c = split(text, v, " ")
        for (i = 2; i <= c; i++) for (j = i; j > 1 && v[j] + 0 < v[j-1] + 0; j--) { t = v[j]; v[j] = v[j-1]; v[j-1] = t }
        return v[int((c + 1) / 2)]
    }
    END {
        c = split(peers, p, " ")
        printf "%-28s", ""; for (i = 1; i <= c; i++) printf "%12s", p[i]; print ""
        for (m = 1; m <= n; m++) {
            printf "%-28s", metric[m]
            for (i = 1; i <= c; i++) printf "%12.4g", median(values[metric[m] SUBSEP p[i]])
            print ""
        }
    }' "$results"
