#!/bin/bash
# Network throughput through user networking, guise beside QEMU's TCG with the same kernel, initrd and iperf3.
#
#   bench/net.sh [--rounds N] [--quick] [--seconds N] [--peers LIST] [--guise FILE]
#
# Peers: guise qemu (backports', q35).  The guest's iperf3 talks to one on this host's loopback, in both directions; datagrams
# carry 100 bytes, those to the guest at that of several rates at which most arrive; requests are transfers of 1 byte over new
# connections, one after the other.
# shellcheck disable=SC2046,SC2086 # lists of words
suite=net
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"

peers="guise qemu" seconds=3
option[seconds]=seconds
quick() { seconds=1; }
bench_options "$@"
bench_begin

use_qemu backports || exit 1
kernel=$(kernel_image cloud) || exit 1
modules=$(kernel_modules "$kernel" virtio_net) || exit 1
initrd=$GUISE_CACHE/bench-net.cpio
image_kind=packages image "$initrd" iperf3 $(module_additions $modules) --add "$bench/net-work.sh:bin/net-work:755" \
    --add "$here/devices/net-guest.sh:bin/net-guest:755" --add "$here/devices/net-dhcp.sh:bin/net-dhcp:755" || exit 1
# The host's end comes from the same package.
root=$GUISE_CACHE/sets/bench-iperf3
packages_extract "$root" bookworm iperf3 || exit 1

port=$((20000 + RANDOM % 20000))
with_libraries "$root"
"${loader[@]}" "$root/usr/bin/iperf3" -s -p $port -B 127.0.0.1 >/dev/null 2>&1 &
server=$!
mkdir "$work/http"
python3 "$here/devices/net-host.py" "$work/http" &
http_server=$!
trap 'kill $server $http_server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 50); do [ ! -s "$work/http/servers" ] || break; sleep 0.1; done
kill -0 $server $http_server || { say "net: a server on the host did not start" && exit 1; }
read -r http _ <"$work/http/servers"

network() # PEER
{
    watch_guest $((60 + 10 * seconds)) "$1" "$kernel" "$initrd" \
        "$(module_commands $modules) net-guest up && net-work 10.0.2.2 $port $http $seconds" --net user
}

bench_rounds network
bench_report
