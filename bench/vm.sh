#!/bin/bash
# A whole Debian in guise beside the same disk in QEMU's TCG: the time from the command to its first output, disk
# throughput, a package installed, a tree the size of a kernel's unpacked.
#
#   bench/vm.sh [--rounds N] [--quick] [--image NAME] [--guise FILE]
#
# Both get the same kernel, memory, one vCPU, an NVMe disk, and a copy-on-write file over the same raw image; QEMU boots
# straight into the script (init=), which is the least that it can be asked to do.  Measurements go to
# bench/out/vm.tsv (round, peer, metric, value), the table to bench/out/vm.txt.  Exit status 1 when something failed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
out=$here/out/vm
. "$top/tests/guest/packages.sh"

rounds=3 image=debian guise=$top/build/guise memory=1024 files=78000 mebibytes=512
usage() { sed -n '5s/^# *//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=${2:?}; shift ;;
    --quick) rounds=1 files=5000 mebibytes=128 ;;
    --image) image=${2:?}; shift ;;
    --guise) guise=${2:?}; shift ;;
    *) usage ;;
    esac
    shift
done
mkdir -p "$out"
exec 9>"$here/out/lock"
flock -n 9 || { say "another benchmark runs: its measurements and these would be worthless"; exit 1; }

# The image's disk with what the measurements need in /bench; made again when the image or one of these changes.
prepare()
{
    local directory key hello
    "$guise" image info "$image" >/dev/null 2>&1 || "$guise" image build "$image" || return 1
    directory=$("$guise" image info "$image" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["directory"])') || return 1
    key=$(echo "$directory" "$files" | cat - "$here/vm-work.sh" "$here/randio.c" | sha256sum)
    kernel=$directory/kernel
    [ "$(cat "$out/key" 2>/dev/null)" != "$key" ] || return 0
    say "preparing the disk"
    rm -f "$out/key" "$out/disk.raw"
    gcc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -O2 -static -s -I "$here" -o "$out/randio" "$here/randio.c" || return 1
    apt_prepare && rm -rf "$out/deb" && mkdir "$out/deb" && (cd "$out/deb" && apt_private apt-get download hello) || return 1
    hello=$(echo "$out"/deb/hello_*.deb)
    python3 "$here/make-tree.py" "$files" "$out/tree.tar" || return 1
    cp --sparse=always --reflink=auto "$directory/disk.raw" "$out/disk.raw" && chmod 600 "$out/disk.raw" || return 1
    /sbin/debugfs -w "$out/disk.raw" >/dev/null 2>"$out/debugfs.err" <<COMMANDS || return 1
mkdir /bench
write $out/randio /bench/randio
sif /bench/randio mode 0100755
write $here/vm-work.sh /bench/work
write $hello /bench/hello.deb
write $out/tree.tar /bench/tree.tar
COMMANDS
    /sbin/debugfs -R 'ls /bench' "$out/disk.raw" 2>/dev/null | grep -q tree.tar || { say "the disk has no room: $(tail -n 1 "$out/debugfs.err")"; return 1; }
    "$guise" image rm guise-bench >/dev/null 2>&1
    "$guise" image import "$out/disk.raw" --name guise-bench >&2 || return 1
    echo "$key" >"$out/key"
}

qemu() # APPEND...: QEMU of backports on q35; its serial line on standard output
{
    local root=$GUISE_CACHE/qemu-backports
    rm -f "$out/disk.qcow2"
    qemu-img create -q -f qcow2 -b "$out/disk.raw" -F raw "$out/disk.qcow2" || return 1
    QEMU_MODULE_DIR=$root/usr/lib/x86_64-linux-gnu/qemu timeout 900 "$root/lib64/ld-linux-x86-64.so.2" \
        --library-path "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" \
        "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
        -M q35 -accel tcg,thread=single -cpu max -smp 1 -m $memory -nodefaults -no-user-config -display none \
        -serial stdio -no-reboot -drive "file=$out/disk.qcow2,if=none,id=d" -device nvme,drive=d,serial=bench \
        -kernel "$kernel" -append "console=ttyS0 quiet panic=-1 root=/dev/nvme0n1 rw init=/bin/sh -- -c \"$1\"" </dev/null
}
guest_set_up='mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run'
off='sync; echo o >/proc/sysrq-trigger; sleep 10'

first_line() # COMMAND...: seconds until its first line that says READY
{
    "$out/watch" -t 120 "$@" 2>"$out/err" | awk '$2 == "READY" { print $1; found = 1 } END { exit !found }'
}

rows() { # ROUND PEER
    tr -d '\r' | awk -v OFS='\t' -v round="$1" -v peer="$2" '
        $1 == "TIME" || $1 == "RATE" { print round, peer, $2, $3 }
        $1 == "FAILED" { print round, peer, "failed", $0 }
        $1 == "END" { end = 1 }
        END { if (!end) print round, peer, "failed", "no end" }'
}

measure() # ROUND PEER
{
    local start
    if [ "$2" = guise ]; then
        start=$(first_line "$guise" run --rm guise-bench --memory ${memory}M -- echo READY) || start=
        echo "$1 guise start ${start:-failed}" | tr ' ' '\t'
        "$guise" run --rm guise-bench --memory ${memory}M -- bash /bench/work $mebibytes 2>"$out/guise.err" </dev/null | rows "$1" guise
    else
        export -f qemu
        start=$(export out kernel memory GUISE_CACHE; first_line bash -c 'qemu "echo READY"') || start=
        echo "$1 qemu start ${start:-failed}" | tr ' ' '\t'
        qemu "$guest_set_up; bash /bench/work $mebibytes; $off" 2>"$out/qemu.err" | rows "$1" qemu
    fi
}

packages_extract "$GUISE_CACHE/qemu-backports" bookworm-backports qemu-system-x86 || exit 1
prepare || { say "the disk could not be prepared"; exit 1; }
gcc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -O2 -o "$out/watch" "$here/watch.c" || exit 1
: >"$out/../vm.tsv"
for ((round = 1; round <= rounds; round++)); do
    for peer in guise qemu; do
        say "round $round of $rounds: $peer"
        measure $round $peer | tee -a "$out/../vm.tsv" >&2
    done
done
awk -F '\t' -f "$here/vm-table.awk" "$out/../vm.tsv" | tee "$out/../vm.txt"
exit "${PIPESTATUS[0]}"
