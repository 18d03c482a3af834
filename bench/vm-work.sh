#!/bin/bash
# What bench/vm.sh measures inside a guest, from the directory /bench of its disk, as bench/lib.sh reads it.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
now() { date +%s.%N; }
timed() { # NAME COMMAND...
    local name=$1 start
    shift
    printf 'START\t%s\n' "$name"
    start=$(now)
    "$@" >/bench/log 2>&1 || { printf 'FAILED\t%s: %s\n' "$name" "$(tail -n 1 /bench/log)" && return; }
    printf '%s, s\t%s\n' "$name" "$(echo "$start $(now)" | awk '{ printf "%.3f", $2 - $1 }')"
}
drop() { sync && echo 3 >/proc/sys/vm/drop_caches; }

cd /var/tmp || exit 1
timed "write 1 MiB blocks" dd if=/dev/zero of=big bs=1M count="$1" oflag=direct conv=fsync
drop
timed "read 1 MiB blocks" dd if=big of=/dev/null bs=1M iflag=direct
/bench/randio big 3
rm big
timed "install a package" dpkg -i /bench/hello.deb
mkdir tree
drop
timed "unpack a tree" sh -c 'tar -xf /bench/tree.tar -C tree && sync'
timed "remove the tree" sh -c 'rm -rf tree && sync'
echo DONE
