#!/bin/bash
# Disk throughput, guise beside QEMU's TCG with the same kernel, initrd and program.
#
#   bench/disk.sh [--rounds N] [--quick] [--seconds N] [--peers LIST] [--guise FILE]
#
# Peers: guise qemu (backports', q35).  Each with an NVMe disk over a raw file, the same over a copy-on-write file (an overlay;
# qcow2), and a virtio disk.  The file of 256 MiB is in the host's page cache.
# shellcheck disable=SC2046,SC2086 # lists of words
suite=disk
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"

peers="guise qemu" seconds=1
option[seconds]=seconds
quick() { seconds=0.5; }
bench_options "$@"
bench_begin

use_qemu backports || exit 1
kernel=$(kernel_image cloud) || exit 1
modules=$(kernel_modules "$kernel" virtio_blk) || exit 1
compile "$bench/diskio.c" "$work/diskio" -static -s || exit 1
initrd=$work/disk.cpio
image "$initrd" $(module_additions $modules) --add "$work/diskio:bin/diskio:755" || exit 1
dd if=/dev/urandom of="$work/disk.img" bs=1M count=256 2>/dev/null

over() # PEER: makes a copy-on-write file over the disk; prints its name
{
    rm -f "$work"/over.*
    if [ "$1" = guise ]; then
        "$GUISE" disk create "$work/over.overlay" --base "$work/disk.img" >&2 && echo "$work/over.overlay"
    else
        qemu-img create -q -f qcow2 -b "$work/disk.img" -F raw "$work/over.qcow2" && echo "$work/over.qcow2"
    fi
}

one_disk() # PEER NAME DEVICE DISK
{
    watch_guest 90 "$1" "$kernel" "$initrd" "$(module_commands $modules) diskio /dev/$3 $seconds '$2'" --disk "$4"
}

disks() # PEER
{
    one_disk "$1" nvme nvme0n1 "$work/disk.img"
    one_disk "$1" copy-on-write nvme0n1 "$(over "$1")"
    one_disk "$1" virtio vda "$work/disk.img,bus=virtio"
}

bench_rounds disks
bench_report
