#!/bin/bash
# Disks with Linux's drivers: NVMe and virtio, raw files and overlays, discard, read-only ones, a host that is full.
# shellcheck disable=SC2046,SC2086 # lists of words
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok kernel "could not be fetched"; finish; }
modules=$(kernel_modules "$kernel" virtio_blk) || { not_ok modules "missing"; finish; }
initrd=$work/disk.cpio
image "$initrd" $(module_additions $modules) --add "$here/devices/disk-guest.sh:bin/disk-guest:755" || { not_ok image "no"; finish; }
load="$(module_commands $modules) true"

disk_guest() # NAME COMMAND OPTIONS...: runs it; output in $work/NAME, what guise says in $work/NAME.err
{
    local name=$1 command=$2
    shift 2
    "$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$load && $command" -- --timeout 120 "$@" \
        >"$work/$name" 2>"$work/$name.err" </dev/null
}

check() # NAME CONDITION OUTPUT
{
    if eval "$2"; then ok "$1"; else not_ok "$1" "$(tail -n 2 "$work/$3" "$work/$3.err" | tr '\n' ' ')"; fi
}

has() { grep -qx "$2" "$work/$1"; } # OUTPUT LINE

used() { du -k "$1" | cut -f 1; } # kilobytes on the host

ext4() # FILE SIZE: a file system with a file in it
{
    mkdir -p "$work/seed" && echo "hello from the host" >"$work/seed/hello"
    truncate -s "$2" "$1" && mke2fs -q -t ext4 -d "$work/seed" "$1"
}

clean() { e2fsck -fn "$1" >"$work/fsck" 2>&1; } # FILE

# --- the same work on each kind --------------------------------------------------------------------------------

ext4 "$work/raw.img" 96M && ext4 "$work/base.img" 64M || { not_ok mke2fs "no"; finish; }
sha256sum "$work/base.img" >"$work/base.sum"
for name in a b; do "$GUISE" disk create "$work/$name.overlay" --base "$work/base.img" || not_ok "overlay $name" "not made"; done
all=
for device in FIRST SECOND vda vdb; do all="$all disk-guest files $device &&"; done
disk_guest none true --disk "$work/raw2.img"
check "a disk that is not there is one sentence" 'grep -q "^guise: cannot open disk $work/raw2.img: No such file" "$work/none.err"' none
cp "$work/raw.img" "$work/raw2.img"
# shellcheck disable=SC2016 # for the guest's shell
disk_guest work "$all"' disk-guest read-only LAST && cat /sys/block/vda/serial && echo && cat /sys/block/vda/queue/write_cache &&
    cat /sys/block/nvme0n1/queue/write_cache && dmesg | grep -E "nvme|virtio_blk|I/O error|vd[ab]"' \
    --disk "$work/raw.img,serial=FIRST" --disk "$work/a.overlay,serial=SECOND" \
    --disk "$work/b.overlay,bus=virtio,serial=THIRD" --disk "$work/raw2.img,bus=virtio" --disk "$work/base.img,ro,serial=LAST"
for device in FIRST SECOND vda vdb; do check "$device: files are what was written" "has work '$device files equal'" work; done
check "serial number of virtio" 'has work THIRD' work
check "a write cache is there to be flushed" '[ "$(grep -c "^write back" "$work/work")" = 2 ]' work
check "read-only: the guest knows, and reads" 'has work "LAST cannot be written" && has work "hello from the host"' work
check "drivers have no complaint" '! grep -E "error|fail|timeout|invalid|missing" "$work/work"' work
check "the base is untouched" 'sha256sum -c --quiet "$work/base.sum"' work
for name in a b; do check "overlay $name is sound" '"$GUISE" disk check "$work/$name.overlay" >/dev/null' work; done
check "ext4 on raw files is clean" 'clean "$work/raw.img" && clean "$work/raw2.img"' work
"$GUISE" disk copy "$work/a.overlay" "$work/a.img" && "$GUISE" disk copy "$work/b.overlay" "$work/b.img"
check "ext4 on overlays is clean" 'clean "$work/a.img" && clean "$work/b.img"' work

# --- discard: the host gets the space back ------------------------------------------------------------------------

for file in raw.img a.overlay b.overlay raw2.img; do used "$work/$file"; done >"$work/before"
disk_guest trim "${all//files/discard} true" --disk "$work/raw.img,serial=FIRST" --disk "$work/a.overlay,serial=SECOND" \
    --disk "$work/b.overlay,bus=virtio" --disk "$work/raw2.img,bus=virtio"
for file in raw.img a.overlay b.overlay raw2.img; do used "$work/$file"; done >"$work/after"
for i in 1 2 3 4; do
    before=$(sed -n ${i}p "$work/before")
    after=$(sed -n ${i}p "$work/after")
    check "$(sed -n ${i}p <(printf 'nvme raw\nnvme overlay\nvirtio overlay\nvirtio raw\n')): discard frees" "[ $((before - after)) -gt 11000 ]" trim
done
check "ext4 is clean after a discard" 'clean "$work/raw.img"' trim

# --- a host that is full: a limit on the size of files, above that of the guest's memory, stands for it -----------------

truncate -s 1G "$work/full.img" "$work/full2.img"
(ulimit -f 614400 && disk_guest full "disk-guest full nvme0n1 && disk-guest full vda" --disk "$work/full.img" --disk "$work/full2.img,bus=virtio")
for device in nvme0n1 vda; do
    check "$device: a full host is an error of the write" "grep -qE '^$device dd: .*(No space left|I/O error|Input/output error)' '$work/full' && ! has full '$device took all'" full
    check "$device: reads and other writes go on" "has full '$device reads on' && has full '$device writes on'" full
done
check "the host is told once for each disk" '[ "$(grep -c "^guise: disk .*a write failed" "$work/full.err")" = 2 ]' full

# --- another format, and the end of the process that serves it ----------------------------------------------------------

if command -v qemu-nbd >/dev/null; then
    ext4 "$work/seed.img" 64M && qemu-img convert -O qcow2 "$work/seed.img" "$work/disk.qcow2"
    disk_guest qcow2 "disk-guest files nvme0n1 && disk-guest lose nvme0n1" --disk "$work/disk.qcow2" &
    for _ in $(seq 600); do grep -qs "writes now" "$work/qcow2" && break; sleep 0.1; done
    sleep 0.5
    pkill -9 -f "^qemu-nbd .*file:$work/disk.qcow2"
    wait
    check "qcow2: files are what was written" 'has qcow2 "nvme0n1 files equal"' qcow2
    check "qcow2: qemu-nbd's end is an error in the guest, and one line" \
        'has qcow2 "nvme0n1 is lost" && [ "$(grep -c "qemu-nbd has ended" "$work/qcow2.err")" = 1 ]' qcow2
    qemu-img check -q "$work/disk.qcow2" >"$work/fsck" 2>&1
    check "qcow2: the image is sound after that" '[ $? = 0 ] || ! grep -q corrupt "$work/fsck"' qcow2
else
    echo "qcow2: not tried, qemu-utils is not installed" >&2
fi
finish
