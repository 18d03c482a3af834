#!/bin/bash
# virtio-vsock with Linux's driver: connections both ways, much data, half-closes, slow readers.
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok kernel "could not be fetched"; finish; }
gcc -std=gnu17 -O2 -static -o "$work/vsock" "$here/devices/vsock.c" || { not_ok build "no static C program"; finish; }
modules=$(kernel_modules "$kernel" vmw_vsock_virtio_transport) || { not_ok modules "missing"; finish; }
initrd=$work/vsock.cpio
# shellcheck disable=SC2046,SC2086 # one word a module
image "$initrd" --add "$work/vsock:bin/vsock:755" $(module_additions $modules) || { not_ok image "no"; finish; }

"$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$(module_commands $modules) exec vsock" \
    -- --vsock "$work/v" --timeout 120 >"$work/console" 2>&1 &
guest=$!
for _ in $(seq 100); do [ ! -S "$work/v" ] || break; sleep 0.1; done
timeout 110 python3 "$here/devices/vsock-host.py" "$work/v" || failures=1
wait $guest
[ ! -e "$work/v" ] && ok "the socket is removed" || not_ok "the socket is removed" "it is there"
[ "$failures" = 0 ] || tail -n 20 "$work/console"
finish
