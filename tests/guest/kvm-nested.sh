#!/bin/sh
# Runs the KVM engine on a host without hardware virtualization: QEMU's TCG emulates an AMD CPU with
# SVM, in it Debian's own kernel drives /dev/kvm, and there the program under test runs.
#
#   kvm-nested.sh                        runs the engine's unit test, then boots Linux in
#                                        `guise run --engine kvm` and looks for its greeting
#   kvm-nested.sh PROGRAM [ARGUMENT...]  runs PROGRAM (with its libraries) there; its status decides
#
# From the environment: GUISE (the command, build/guise), TIMEOUT (seconds in all, 600), QEMU
# (qemu-system-x86_64), OUTER (the outer machine's kernel: generic or backports), SMP (its CPUs, 1), MEMORY
# (its MiB, 2048), INNER_CPUS (1), INNER_KERNEL (default: Debian's cloud kernel), INNER_APPEND, EXTRA (more files
# to put in the root directory), LOG (keep the outer console's output there).
# The last line is "kvm-nested: passed" or "kvm-nested: FAILED ..."; status 0, 1, or 77: cannot be tried here.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
: "${GUISE:=$here/../../build/guise}" "${TIMEOUT:=600}" "${QEMU:=qemu-system-x86_64}"
: "${OUTER:=generic}" "${SMP:=1}" "${MEMORY:=2048}" "${INNER_CPUS:=1}"
: "${INNER_KERNEL:=}" "${INNER_APPEND:=}" "${EXTRA:=}" "${LOG:=}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

skip() { echo "kvm-nested: skipped: $*"; exit 77; }
fail() { echo "kvm-nested: FAILED: $*"; exit 1; }

for tool in "$QEMU" cpio gzip dpkg-deb ldd; do
    command -v "$tool" >/dev/null || skip "no $tool here (packages qemu-system-x86 and cpio)"
done
busybox=$(command -v busybox) || skip "no busybox here (package busybox-static)"
! ldd "$busybox" >/dev/null 2>&1 || skip "busybox is not static (package busybox-static)"

# put FILE TO: a program or file at TO (relative to the root), with the libraries it names.
put() {
    mkdir -p "$root/$(dirname "$2")"
    cp -L "$1" "$root/$2"
    ldd "$1" 2>/dev/null | grep -o '/[^ )]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -Ln "$library" "$root$library" 2>/dev/null || cp -L "$library" "$root$library"
    done
}

# skeleton: busybox and its names in $root.
skeleton() {
    mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
    cp "$busybox" "$root/bin/busybox"
    for name in sh mount insmod poweroff echo cat sleep uname dmesg grep head tail ls; do
        ln -sf busybox "$root/bin/$name"
    done
}

pack() { (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$1"; }

inner_initrd() {
    root=$work/inner
    skeleton
    cat >"$root/init" <<'INIT'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo "inner: $(uname -r), $(grep -c ^processor /proc/cpuinfo) cpus, clock $clock"
dmesg | grep -E 'BUG|WARNING|Oops|Call Trace|rror:' | head -n 20
echo "inner: all is well"
poweroff -f
INIT
    chmod +x "$root/init"
    pack "$work/inner.gz"
}

kernel=$("$here/../../scripts/guest-kernel.sh" "$OUTER") || skip "Debian's kernel cannot be had"
modules=$(find "${kernel%/boot/*}/lib/modules" -mindepth 2 -maxdepth 2 -name kernel | head -n 1)

if [ $# -gt 0 ]; then
    program=$1
    shift
    arguments=$*
else
    [ -x "$GUISE" ] || fail "no command $GUISE (run make first)"
    program=$GUISE
    inner_initrd
    [ -n "$INNER_KERNEL" ] || INNER_KERNEL=$("$here/../../scripts/guest-kernel.sh" cloud) ||
        skip "Debian's kernel cannot be had"
    unit=$(dirname "$GUISE")/tests/unit/test_engine_kvm
    [ ! -x "$unit" ] || EXTRA="$EXTRA $unit"
    # Before version 10 QEMU's SVM lets the guest's XSETBV through, and KVM never learns of it.
    "$QEMU" --version | grep -q 'version [1-9][0-9]' || INNER_APPEND="noxsave $INNER_APPEND"
    arguments="run --engine kvm --kernel /vmlinuz --initrd /inner.gz --memory 256M --cpus $INNER_CPUS --no-reboot"
    arguments="$arguments --stats --timeout $((TIMEOUT - 30)) --append \"console=ttyS0 quiet panic=-1 $INNER_APPEND\""
fi

root=$work/outer
skeleton
put "$program" bin/under-test
[ ! -f "$work/inner.gz" ] || { cp "$work/inner.gz" "$root/inner.gz"; cp "$INNER_KERNEL" "$root/vmlinuz"; }
for file in $EXTRA; do put "$file" "$(basename "$file")"; done
for module in drivers/char/hw_random/rng-core virt/lib/irqbypass drivers/crypto/ccp/ccp arch/x86/kvm/kvm \
    arch/x86/kvm/kvm-amd; do
    mkdir -p "$root/modules"
    [ ! -f "$modules/$module.ko" ] || cp "$modules/$module.ko" "$root/modules"
    [ ! -f "$modules/$module.ko.xz" ] || xz -dc "$modules/$module.ko.xz" >"$root/modules/${module##*/}.ko"
done
cat >"$root/init" <<INIT
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in rng-core irqbypass ccp kvm kvm-amd; do
    [ ! -f /modules/\$module.ko ] || insmod /modules/\$module.ko
done
[ -c /dev/kvm ] || echo "outer: no /dev/kvm"
status=0
[ ! -x /test_engine_kvm ] || /test_engine_kvm </dev/null || status=\$?
[ \$status != 0 ] || { /bin/under-test $arguments </dev/null; status=\$?; }
echo "outer: status \$status"
poweroff -f
INIT
chmod +x "$root/init"
pack "$work/outer.gz"

log=${LOG:-$work/log}
timeout -k 5 "$TIMEOUT" "$QEMU" -M q35 -accel tcg -cpu max,+svm -smp "$SMP" -m "$MEMORY" \
    -display none -serial stdio -no-reboot -kernel "$kernel" -initrd "$work/outer.gz" \
    -append "console=ttyS0 panic=-1 quiet" </dev/null | tr -d '\r' | tee "$log" || :

status=$(sed -n 's/.*outer: status \([0-9]*\)$/\1/p' "$log" | tail -n 1)
[ -n "$status" ] || fail "no end within $TIMEOUT s"
[ "$status" != 77 ] || skip "the program under test skipped itself"
[ "$status" = 0 ] || fail "status $status"
[ ! -f "$work/inner.gz" ] || grep -q 'inner: all is well' "$log" || fail "the inner system did not come up"
echo "kvm-nested: passed"
