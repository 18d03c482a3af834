#!/bin/bash
# A virtio console's ports with Linux's driver: one is hvc0, the other a program's.
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok kernel "could not be fetched"; finish; }
modules=$(kernel_modules "$kernel" virtio_console) || { not_ok modules "missing"; finish; }
initrd=$work/ports.cpio
# shellcheck disable=SC2046,SC2086 # one word a module
image "$initrd" --add "$here/devices/ports-guest.sh:ports.sh" $(module_additions $modules) || { not_ok image "no"; finish; }

# shellcheck disable=SC2046,SC2086
"$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$(module_commands $modules) sh /ports.sh" \
    -- --port "hvc0=file:$work/hvc0" --port "data=socket:$work/data" --timeout 100 >"$work/console" 2>&1 &
guest=$!
for _ in $(seq 100); do [ ! -S "$work/data" ] || break; sleep 0.1; done
timeout 90 python3 "$here/devices/ports-host.py" "$work/data" || failures=1
wait $guest && ok the-guest-ends || not_ok the-guest-ends "status $?"
grep -q '^on the console' "$work/hvc0" && ok hvc0 || not_ok hvc0 "$(head -c 200 "$work/hvc0")"
[ "$failures" = 0 ] || tail -n 20 "$work/console"
finish
