#!/bin/bash
# What bench/vm.sh measures inside a guest, from the directory /bench of its disk.  Prints "TIME name seconds",
# "RATE name per-second" and "END".
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
now() { date +%s.%N; }
timed() { # NAME COMMAND...
    local name=$1 start
    shift
    start=$(now)
    "$@" >/bench/log 2>&1 || { echo "FAILED $name: $(tail -n 1 /bench/log)"; return; }
    echo "TIME $name $(echo "$start $(now)" | awk '{ printf "%.3f", $2 - $1 }')"
}
drop() { sync && echo 3 >/proc/sys/vm/drop_caches; }

cd /var/tmp || exit 1
timed seqwrite dd if=/dev/zero of=big bs=1M count="$1" oflag=direct conv=fsync
drop
timed seqread dd if=big of=/dev/null bs=1M iflag=direct
/bench/randio big 3
rm big
timed dpkg dpkg -i /bench/hello.deb
mkdir tree
drop
timed untar sh -c 'tar -xf /bench/tree.tar -C tree && sync'
timed rmtree sh -c 'rm -rf tree && sync'
echo END
