#!/bin/busybox sh
# shellcheck shell=dash
# What the guests of tests/guest/disk.sh do with their disks.
#
# DISK is a device's name or the serial number of an NVMe disk: their names are given in any order.
#
#   files DISK       mounts it, writes, unmounts, compares
#   discard DISK     removes what `files` wrote, and trims
#   lose DISK        writes until that fails
#   read-only DISK   tries to write, and reads
#   full DISK        writes where the host cannot
set -eu
name=$2
device=/dev/$name
for serial in /sys/block/nvme*/device/serial; do
    if grep -qs "^$name *$" "$serial"; then
        serial=${serial#/sys/block/}
        device=/dev/${serial%%/*}
    fi
done

sums() { (cd /mnt && find . -type f -exec sha256sum {} + | sort); }

mount_it() { mkdir -p /mnt && mount -t ext4 "$device" /mnt; }

# A few large files, many small ones, one in pieces behind each other.
write_files() {
    mkdir /mnt/small
    dd if=/dev/urandom of=/mnt/large bs=1M count=12 2>/dev/null
    for i in $(seq 300); do echo "$i" >"/mnt/small/$i"; done
    for i in 7 3 9 1; do dd if=/dev/urandom of=/mnt/pieces bs=5000 seek="$i" count=1 conv=notrunc 2>/dev/null; done
}

case $1 in
files)
    mount_it
    cat /mnt/hello # from the host
    write_files
    sync
    sums >/run/before
    umount /mnt
    echo 3 >/proc/sys/vm/drop_caches
    mount_it
    sums >/run/after
    umount /mnt
    cmp /run/before /run/after && echo "$name files equal"
    sha256sum </run/after | sed "s/^/$name sum /"
    ;;
discard)
    mount_it
    rm -r /mnt/large /mnt/small
    sync
    fstrim /mnt
    umount /mnt
    echo "$name trimmed"
    ;;
lose)
    echo "writes now"
    for i in $(seq 1000); do
        dd if=/dev/urandom of="$device" bs=64k seek="$i" count=1 conv=fsync 2>/dev/null || break
        usleep 10000
    done
    dd if="$device" of=/dev/null bs=4k count=1 skip=9999 iflag=direct 2>/dev/null || echo "$name is lost"
    ;;
read-only)
    if dd if=/dev/zero of="$device" bs=4k count=1 conv=fsync 2>/dev/null; then echo "$name was written"; else echo "$name cannot be written"; fi
    mkdir -p /mnt
    mount -t ext4 -o ro,noload "$device" /mnt
    cat /mnt/hello
    umount /mnt
    ;;
full)
    if dd if=/dev/zero of="$device" bs=1M seek=596 count=8 conv=fsync 2>/run/dd; then echo "$name took all"; fi
    sed "s/^/$name /" /run/dd
    dd if="$device" of=/dev/null bs=1M count=8 2>/dev/null && echo "$name reads on"
    dd if=/dev/urandom of="$device" bs=1M count=2 conv=fsync 2>/dev/null && echo "$name writes on"
    ;;
esac
