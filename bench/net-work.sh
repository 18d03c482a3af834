#!/bin/busybox sh
# net-work HOST PORT HTTP-PORT SECONDS: what bench/net.sh measures inside a guest.
host=$1 port=$2 http=$3 seconds=$4

rate() { # OPTION...: Mbit/s as the receiver sees it
    iperf3 -f m -t "$seconds" -c "$host" -p "$port" "$@" | awk '/receiver/ { v = $(NF - 2) } END { print v }'
}
datagrams() { # OPTION...
    iperf3 -t "$seconds" -c "$host" -p "$port" -u -l 100 "$@" |
        awk '/receiver/ { split($(NF - 2), n, "/"); split($3, t, "-"); print int((n[2] - n[1]) / t[2]) }'
}
say() { # NAME VALUE
    [ -n "$2" ] && printf '%s\t%s\n' "$1" "$2" || printf 'FAILED\t%s\n' "$1"
}
say "guest to host, Mbit/s" "$(rate)"
say "host to guest, Mbit/s" "$(rate -R)"
say "4 streams to host, Mbit/s" "$(rate -P 4)"
say "4 streams to guest, Mbit/s" "$(rate -P 4 -R)"
say "datagrams to host, 1/s" "$(datagrams -b 0)"
# At the best of some rates: a slow sender would be what is measured, a flood leaves the receiver no time to receive.
say "datagrams to guest, 1/s" "$(for rate in 20M 40M 80M; do datagrams -b $rate -R; done | sort -n | tail -n 1)"
start=$(cut -d' ' -f1 /proc/uptime)
i=0
while [ $i -lt 100 ]; do
    wget -q -O /dev/null "http://$host:$http/data?1" || break
    i=$((i + 1))
done
[ $i -lt 100 ] || say "requests, 1/s" "$(cut -d' ' -f1 /proc/uptime | awk -v s="$start" '{ print 100 / ($1 - s) }')"
say "ping, ms" "$(ping -c 20 -i 0.05 "$host" | sed -n 's/.*min.avg.max = [^/]*.\([^/]*\).*/\1/p')"
[ $i -lt 100 ] && printf 'FAILED\trequest %s\n' $i || echo DONE
