#!/bin/bash
# virtio-balloon with Linux's driver: what the guest has freed leaves the VM process by itself.
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok kernel "could not be fetched"; finish; }
modules=$(kernel_modules "$kernel" virtio_balloon virtio_console) || { not_ok modules "missing"; finish; }
initrd=$work/balloon.cpio
# shellcheck disable=SC2046,SC2086 # one word a module
image "$initrd" $(module_additions $modules) || { not_ok image "no"; finish; }

# It waits for a word on the port between the steps; `full` and `free` on the port say that it is there.
script='
port=/dev/$(ls /sys/class/virtio-ports); exec 3<>$port
head -c 209715200 /dev/zero >/tmp/block; echo full >&3; read -r word <&3
rm /tmp/block; echo free >&3; read -r word <&3
head -c 104857600 /dev/zero >/tmp/block; sha256sum </tmp/block >&3
read -r word <&3'
# shellcheck disable=SC2046,SC2086
"$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$(module_commands $modules) true; $script" \
    -- --balloon --port "step=socket:$work/port" --timeout 100 >"$work/console" 2>&1 &
guest=$!
for _ in $(seq 100); do [ ! -S "$work/port" ] || break; sleep 0.1; done
timeout 90 python3 - "$work/port" <<'END' || failures=1
import hashlib, socket, struct, sys, time

s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
reader = s.makefile("rb")
pid, _, _ = struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def resident():  # of the guest's memory, MiB
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssShmem")) >> 10


failed = False


def check(name, condition, why):
    global failed
    failed |= not condition
    print(f"ok {name}" if condition else f"not ok {name} {why}", flush=True)


assert reader.readline() == b"full\n"
full = resident()
check("memory-in-use-is-resident", full > 200, f"{full} MiB")
s.sendall(b"go\n")
assert reader.readline() == b"free\n"
for _ in range(100):
    if resident() < full - 150:
        break
    time.sleep(0.1)
free = resident()
check("freed-memory-goes-back-to-the-host", free < full - 150, f"{full} MiB, then {free} MiB")
print(f"{full} MiB, then {free} MiB")
s.sendall(b"go\n")
line = reader.readline()
check("and-can-be-used-again", line.split()[:1] == [hashlib.sha256(bytes(100 << 20)).hexdigest().encode()], line)
s.sendall(b"end\n")
sys.exit(failed)
END
wait $guest && ok the-guest-ends || not_ok the-guest-ends "status $?"
[ "$failures" = 0 ] || tail -n 20 "$work/console"
finish
