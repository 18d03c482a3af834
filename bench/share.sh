#!/bin/bash
# How fast a shared folder is: guise beside QEMU's TCG with virtiofsd (as root), the same kernel, initrd and directory.
#
#   bench/share.sh [--rounds N] [--quick] [--peers LIST] [--guise FILE]
#
# Peers: guise qemu (Debian 12's, q35) memory.  `memory` is guise's guest on a file system in its own memory, for what the guest
# itself costs.  Small files have 10 bytes; streams are 128 MiB in pieces of 1 MiB; the tree is Debian's linux-libc-dev, unpacked
# by GNU tar.
# shellcheck disable=SC2046,SC2086 # lists of words
suite=share
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"

peers="guise qemu memory"
[ "$(id -u)" = 0 ] || peers="guise memory"
bench_options "$@"
bench_begin

[[ $peers != *qemu* ]] || use_qemu 12 || exit 1
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

script='share bench . || exit
start=$(cut -d" " -f1 /proc/uptime)
mkdir tree && tar -C tree -xf /tree.tar || exit
cut -d" " -f1 /proc/uptime | awk -v s=$start "{ print \"untar, files/s\t\" '$files' / (\$1 - s) }"
echo 3 >/proc/sys/vm/drop_caches
start=$(cut -d" " -f1 /proc/uptime)
[ "$(find tree -newer /tree.tar | wc -l)" -gt 0 ] || exit
cut -d" " -f1 /proc/uptime | awk -v s=$start "{ print \"find, files/s\t\" '$files' / (\$1 - s) }"
echo DONE'

folder() # PEER
{
    local prepare="mount -t virtiofs share0 /mnt"
    [ "$1" != memory ] || prepare="mount -t tmpfs -o size=300m x /mnt"
    rm -rf "$folder"/*
    watch_guest 300 "$1" "$kernel" "$initrd" "$(module_commands $modules) mkdir -p /mnt && $prepare && cd /mnt && { $script
        }" --share "$folder"
}

bench_rounds folder
bench_report
