#!/bin/bash
# Network throughput through user networking, guise beside QEMU's TCG with the same kernel, initrd and iperf3.
#
#   bench/net.sh [--rounds N] [--seconds N] [--peers LIST] [--guise FILE]
#
# Peers: guise qemu (q35, Debian 12's).  The guest's iperf3 talks to one on this host's loopback, in both directions;
# datagrams carry 100 bytes; requests are transfers of 1 byte over new connections, one after the other.  Prints medians; every measurement goes to
# bench/out/net.tsv (round, peer, metric, value).
# shellcheck disable=SC2046,SC2086 # lists of words
set -u
out=$(cd "$(dirname "$0")" && pwd)/out

. "$(dirname "$0")/../tests/guest/lib.sh" # sets here (tests/guest) and top

rounds=3 seconds=5 peers="guise qemu"
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=${2:?}; shift ;;
    --seconds) seconds=${2:?}; shift ;;
    --peers) peers=${2//,/ }; shift ;;
    --guise) GUISE=${2:?}; shift ;;
    *) usage ;;
    esac
    shift
done
mkdir -p "$out"
results=$out/net.tsv
: >"$results"

kernel=$(kernel_image cloud) || exit 1
modules=$(kernel_modules "$kernel" virtio_net) || exit 1
initrd=$GUISE_CACHE/bench-net.cpio
image_kind=packages image "$initrd" iperf3 $(module_additions $modules) --add "$top/tests/guest/devices/net-guest.sh:bin/net-guest:755" \
    --add "$top/tests/guest/devices/net-dhcp.sh:bin/net-dhcp:755" || exit 1
# The host's end comes from the same package.
packages_extract "$GUISE_CACHE/sets/bench-iperf3" bookworm iperf3 || exit 1
root=$GUISE_CACHE/sets/bench-iperf3
iperf()
{
    local loader
    loader=$(find "$root" -name 'ld-linux-x86-64.so.2' | head -n 1)
    exec "$loader" --library-path "$(find "$root" -type d -name x86_64-linux-gnu | paste -sd:)" "$root/usr/bin/iperf3" "$@"
}

port=$((20000 + RANDOM % 20000))
(iperf -s -p $port -B 127.0.0.1 >/dev/null 2>&1) &
server=$!
mkdir "$work/http"
python3 "$top/tests/guest/devices/net-host.py" "$work/http" &
http_server=$!
trap 'kill $server $http_server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 50); do [ ! -s "$work/http/servers" ] || break; sleep 0.1; done
read -r http _ <"$work/http/servers"

# Mbit/s as the receiver sees it.
script='rate() { iperf3 -f m -t '$seconds' -c 10.0.2.2 -p '$port' "$@" | awk "/receiver/ { v = \$(NF - 2) } END { print v }"; }
echo "guest to host, Mbit/s	$(rate)"
echo "host to guest, Mbit/s	$(rate -R)"
echo "4 streams to host, Mbit/s	$(rate -P 4 | tail -n 1)"
echo "4 streams to guest, Mbit/s	$(rate -P 4 -R | tail -n 1)"
datagrams() { iperf3 -t '$seconds' -c 10.0.2.2 -p '$port' -u -l 100 "$@" |
    awk "/receiver/ { split(\$(NF - 2), n, \"/\"); split(\$3, t, \"-\"); print int((n[2] - n[1]) / t[2]) }"; }
echo "datagrams to host, 1/s	$(datagrams -b 0)"
echo "datagrams to guest, 1/s	$(datagrams -b 20M -R)"
start=$(cut -d" " -f1 /proc/uptime)
i=0; while [ $i -lt 100 ]; do wget -q -O /dev/null "http://10.0.2.2:'$http'/data?1"; i=$((i + 1)); done
echo "requests a second	$(cut -d" " -f1 /proc/uptime | awk -v s=$start "{ print 100 / (\$1 - s) }")"
echo "ping, ms	$(ping -c 20 -i 0.05 10.0.2.2 | sed -n "s/.*min.avg.max = [^/]*.\([^/]*\).*/\1/p")"'

for ((round = 1; round <= rounds; round++)); do
    for peer in $peers; do
        program=$GUISE
        [ "$peer" = guise ] || program=$here/with-qemu
        GUISE=$program "$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$(module_commands $modules) net-guest up && { $script
        }" -- --net user --timeout $((60 + 8 * seconds)) 2>"$work/err" | sed -n "s/^[^	]*	/$round	$peer	&/p" >>"$results"
        [ "${PIPESTATUS[0]}" = 0 ] || { echo "$peer failed: $(tail -n 1 "$work/err")" >&2; exit 1; }
    done
done

awk -F '\t' -v peers="$peers" '
    { key = $3 SUBSEP $2; values[key] = values[key] " " $4; if (!($3 in seen)) { seen[$3] = 1; metric[++n] = $3 } }
    function median(text,  v, c, i, j, t) {
        c = split(text, v, " ")
        for (i = 2; i <= c; i++) for (j = i; j > 1 && v[j] + 0 < v[j-1] + 0; j--) { t = v[j]; v[j] = v[j-1]; v[j-1] = t }
        return v[int((c + 1) / 2)]
    }
    END {
        c = split(peers, p, " ")
        printf "%-28s", ""; for (i = 1; i <= c; i++) printf "%12s", p[i]; print ""
        for (m = 1; m <= n; m++) {
            printf "%-28s", metric[m]
            for (i = 1; i <= c; i++) printf "%12s", median(values[metric[m] SUBSEP p[i]])
            print ""
        }
    }' "$results"
