#!/bin/bash
# Boots Debian's kernels to an initramfs, again and again; none may hang, warn or oops.
#
#   tests/guest/boot.sh              each kernel a few times
#   N=100 KERNEL=cloud tests/guest/boot.sh      cloud, generic, backports or backports-cloud
set -u
. "$(dirname "$0")/lib.sh"

append="console=ttyS0 panic=-1 oops=panic ${APPEND:-}"
initrd=$GUISE_CACHE/boot.cpio
image "$initrd" --add "$here/boot-init:init:755" || { not_ok image "could not be built"; finish; }

boot_once() # IMAGE: prints what is wrong, nothing if all is well
{
    local status complaint
    guest "$1" "$initrd" "$append" 120 --memory 512M >"$work/console"
    status=$?
    if [ $status != 0 ]; then
        why $status
        grep -q '^BOOTED' "$work/console" || echo "last line: $(tail -n 1 "$work/console")"
    elif ! grep -q '^BOOTED' "$work/console"; then
        echo "powered off before init; last line: $(tail -n 1 "$work/console")"
    elif ! grep -q '^LOG-END' "$work/console"; then
        echo "the log was cut off"
    else
        complaint=$(check_log "$work/console" | head -n 1)
        [ -z "$complaint" ] || echo "in its log: $complaint"
    fi
}

boot_kernel() # NAME TIMES
{
    local name=$1 times=$2 kernel i reason
    kernel=$(kernel_image "$name") || { not_ok "boot-$name" "the kernel could not be fetched"; return; }
    for ((i = 1; i <= times; i++)); do
        reason=$(boot_once "$kernel" | tr '\n' ' ')
        if [ -n "$reason" ]; then
            not_ok "boot-$name" "boot $i of $times: $reason"
            mkdir -p "${BOOT_LOGS:-$GUISE_CACHE/logs}"
            cp "$work/console" "${BOOT_LOGS:-$GUISE_CACHE/logs}/boot-$name-$i.log"
            return
        fi
        [ "$times" -lt 10 ] || say "$name: boot $i of $times"
    done
    ok "boot-$name ($times times)"
}

if [ -n "${KERNEL:-}" ]; then
    boot_kernel "$KERNEL" "${N:-1}"
else
    boot_kernel cloud "${N:-3}"
    boot_kernel generic "${N:-1}"
    boot_kernel backports "${N:-1}"
fi
finish
