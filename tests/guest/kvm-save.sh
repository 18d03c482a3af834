#!/bin/sh
# A machine on the KVM engine is saved, goes back to what it was, moves and is copied, while its guest checks what it has stored,
# its registers and its clock (kvm-save/guest.c).  On a host without hardware virtualization: see kvm-nested.sh, whose
# environment is this one's, too.
#
#   ROUNDS=1      how often all of that
set -eu

here=$(cd "$(dirname "$0")" && pwd)
: "${GUISE:=$here/../../build/guise}" "${ROUNDS:=1}" "${INNER_CPUS:=2}" "${INNER_KERNEL:=}" "${INNER_APPEND:=}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

for tool in gcc cpio gzip busybox; do
    command -v "$tool" >/dev/null || { echo "kvm-nested: skipped: no $tool here"; exit 77; }
done
[ -n "$INNER_KERNEL" ] || INNER_KERNEL=$("$here/../../scripts/guest-kernel.sh" cloud) ||
    { echo "kvm-nested: skipped: Debian's kernel cannot be had"; exit 77; }
# Before version 10 QEMU's SVM lets the guest's XSETBV through, and KVM never learns of it.
"${QEMU:-qemu-system-x86_64}" --version | grep -q 'version [1-9][0-9]' || INNER_APPEND="noxsave $INNER_APPEND"

mkdir "$work/root"
gcc -O2 -Wall -static -pthread -o "$work/root/init" "$here/kvm-save/guest.c"
(cd "$work/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/guest.gz"
cp "$INNER_KERNEL" "$work/vmlinuz"
cp "$GUISE" "$work/guise"
EXTRA="$work/guise $work/vmlinuz $work/guest.gz" "$here/kvm-nested.sh" "$here/kvm-save/inside.sh" "$INNER_CPUS" "$ROUNDS" \
    "$INNER_APPEND"
