#!/bin/bash
# A whole Debian in guise beside the same disk in QEMU's TCG: the time from the command to its first output and to the login
# prompt of systemd, disk throughput, a package installed, a tree the size of a kernel's unpacked.
#
#   bench/vm.sh [--rounds N] [--quick] [--image NAME] [--peers LIST] [--guise FILE]
#
# Peers: guise qemu (backports', q35).  Both get the same kernel, memory, one vCPU, an NVMe disk, and a copy-on-write file over
# the same raw image; QEMU boots straight into the script (init=), which is the least that it can be asked to do.
suite=vm
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"

peers="guise qemu" rounds=2 image=debian memory=1024 files=78000 mebibytes=512
option[image]=image
quick() { files=5000 mebibytes=128; }
bench_options "$@"
bench_begin
vm=$out/vm
mkdir -p "$vm"

# The image's disk with what the measurements need in /bench; made again when the image or one of these changes.
prepare()
{
    local directory key hello
    "$GUISE" image info "$image" >/dev/null 2>&1 || "$GUISE" image build "$image" || return 1
    directory=$("$GUISE" image info "$image" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["directory"])') || return 1
    key=$(echo "$directory" "$files" | cat - "$bench/vm-work.sh" "$bench/randio.c" "$bench/make-tree.py" | sha256sum)
    kernel=$directory/kernel
    [ "$(cat "$vm/key" 2>/dev/null)" != "$key" ] || return 0
    say "preparing the disk"
    rm -f "$vm/key" "$vm/disk.raw"
    compile "$bench/randio.c" "$vm/randio" -static -s || return 1
    apt_prepare && rm -rf "$vm/deb" && mkdir "$vm/deb" && (cd "$vm/deb" && apt_private apt-get download hello) || return 1
    hello=$(echo "$vm"/deb/hello_*.deb)
    python3 "$bench/make-tree.py" "$files" "$vm/tree.tar" || return 1
    cp --sparse=always --reflink=auto "$directory/disk.raw" "$vm/disk.raw" && chmod 600 "$vm/disk.raw" || return 1
    /sbin/debugfs -w "$vm/disk.raw" >/dev/null 2>"$vm/debugfs.err" <<COMMANDS || return 1
mkdir /bench
write $vm/randio /bench/randio
sif /bench/randio mode 0100755
write $bench/vm-work.sh /bench/work
write $hello /bench/hello.deb
write $vm/tree.tar /bench/tree.tar
COMMANDS
    /sbin/debugfs -R 'ls /bench' "$vm/disk.raw" 2>/dev/null | grep -q tree.tar || { say "the disk has no room: $(tail -n 1 "$vm/debugfs.err")"; return 1; }
    rm -f "$vm/tree.tar"
    "$GUISE" image rm guise-bench >/dev/null 2>&1
    "$GUISE" image import "$vm/disk.raw" --name guise-bench >&2 || return 1
    echo "$key" >"$vm/key"
}

disk_boot() # PEER SECONDS APPEND [OPTION OF WATCH...]: a boot from a fresh copy-on-write file
{
    local peer=$1 seconds=$2 append=$3 program=$GUISE disk=$vm/disk.overlay
    shift 3
    if [ "$peer" = guise ]; then
        rm -f "$disk" && "$GUISE" disk create "$disk" --base "$vm/disk.raw" >&2 || return 1
    else
        program=$here/with-qemu disk=$vm/disk.qcow2
        qemu-img create -q -f qcow2 -b "$vm/disk.raw" -F raw "$disk" || return 1
    fi
    "$out/watch" -t "$seconds" "$@" "$program" run --kernel "$kernel" --disk "$disk" --memory ${memory}M --timeout "$seconds" \
        --no-reboot --append "console=ttyS0 quiet panic=-1 root=/dev/nvme0n1 rw $append" </dev/null
}

command_run() # PEER SECONDS COMMAND [OPTION OF WATCH...]: the shortest way to a command
{
    local peer=$1 seconds=$2 command=$3
    shift 3
    if [ "$peer" = guise ]; then
        "$out/watch" -t "$seconds" "$@" "$GUISE" run --rm guise-bench --memory ${memory}M -- sh -c "$command" </dev/null
    else
        disk_boot "$peer" "$seconds" "init=/bin/sh -- -c \"$command\"" "$@"
    fi
}

stamp() # NAME TEXT: the line of watch's that has this text
{
    tr -d '\r' | sed -n "s/^\([0-9.]*\)$tab.*$2.*/\1${tab}STAMP$tab$1/p" | head -n 1
}

debian() # PEER
{
    local set_up='' off=''
    if [ "$1" != guise ]; then
        set_up='mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run;'
        off='; sync; echo o >/proc/sysrq-trigger; sleep 10'
    fi
    command_run "$1" 120 "echo READY" -u READY | stamp "command to first output" READY
    disk_boot "$1" 300 "" -u "GNU/Linux" | stamp "command to login prompt" "GNU.Linux.*ttyS0"
    command_run "$1" 900 "$set_up bash /bench/work $mebibytes$off"
}

use_qemu backports || exit 1
prepare || { say "the disk could not be prepared" && exit 1; }
bench_rounds debian
bench_report
