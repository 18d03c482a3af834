#!/bin/busybox sh
# shellcheck shell=dash
# The guests of tests/guest/net.sh and bench/net.sh.  The first word says what to do; `up` first.
#
#   up [ADDRESS/LEN]     configures eth0, by DHCP unless told; the modules are loaded by the caller
#   user PORT UDPPORT    transfers with net-host.py at 10.0.2.2, and serves ports 80 and 53 (UDP) meanwhile
#   outage PORT          goes on until its network has gone and come back
#   exchange ADDRESS     transfers with another guest that does the same
#   tap PORT             transfers with net-host.py at 192.168.77.1
set -eu

up() {
    ip link set eth0 up
    if [ $# -gt 0 ]; then
        ip addr add "$1" dev eth0
    else
        udhcpc -q -n -i eth0 -t 5 -T 2 -s /bin/net-dhcp >/run/udhcpc.log 2>&1 || { cat /run/udhcpc.log; return 1; }
    fi
}

sum() { sha256sum | cut -d' ' -f1; }

# Both directions with the same bytes; BYTES are as net-host.py makes them.
transfers() { # URL BYTES
    wget -q -O /tmp/data "$1/data?$2"
    echo "received $(wc -c </tmp/data) $(sum </tmp/data)"
    # busybox's wget posts text only
    host=${1#http://}
    { printf 'POST /data HTTP/1.0\r\nContent-Length: %d\r\n\r\n' "$2" && cat /tmp/data; } |
        nc "${host%:*}" "${host#*:}" | sed -n 's/^\([0-9]* [0-9a-f]*\)$/sent \1/p'
    rm /tmp/data
}

user() { # PORT UDPPORT
    echo "address $(ip -4 addr show eth0 | sed -n 's/.*inet \([^ ]*\).*/\1/p') router $(ip route | sed -n 's/default via \([^ ]*\).*/\1/p') dns $(sed -n 's/nameserver //p' /etc/resolv.conf)"
    mkdir -p /www
    head -c 3000000 /dev/urandom >/www/file
    echo "file $(sum </www/file)"
    httpd -p 80 -h /www
    udp echo 53 &
    transfers "http://10.0.2.2:$1" 30000000
    echo "udp $(udp ask 10.0.2.2 "$2" hello)"
    ping -c 1 -W 2 10.0.2.2 >/dev/null && echo "ping"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        ip -6 addr show eth0 | grep -q fec0 && break
        sleep 0.3
    done
    ping -6 -c 1 -W 2 fec0::2 >/dev/null && echo "ping6"
    wget -q -O /tmp/data "http://[fec0::2]:$1/data?30000000" && echo "received6 $(sum </tmp/data)"
    wget -q -O - "http://10.0.2.2:$1/ready"
}

outage() { # PORT
    changes=$(cat /sys/class/net/eth0/carrier_changes)
    wget -q -O - "http://10.0.2.2:$1/data?100000000000" >/dev/null 2>&1 &
    (sleep 1 && wget -q -O - "http://10.0.2.2:$1/ready" >/dev/null 2>&1) &
    for _ in $(seq 200); do
        sleep 0.1
        [ "$(cat /sys/class/net/eth0/carrier_changes)" -gt "$changes" ] || continue
        [ "$(cat /sys/class/net/eth0/carrier)" != 1 ] || break
    done
    echo "carrier changes $(($(cat /sys/class/net/eth0/carrier_changes) - changes))"
    transfers "http://10.0.2.2:$1" 1000000
}

# Each fetches what the other has, and stays until the other has done so.
exchange() { # ADDRESS
    mkdir /www
    head -c 20000000 /dev/urandom >/tmp/file
    mv /tmp/file /www/file
    echo "mine $(sum </www/file)"
    httpd -p 80 -h /www
    until wget -q -O /tmp/file "http://$1/file" 2>/dev/null; do sleep 0.3; done
    echo "theirs $(sum </tmp/file)"
    : >/www/done
    for _ in $(seq 100); do
        wget -q -O /dev/null "http://$1/done" 2>/dev/null && sleep 1 && break
        sleep 0.3
    done
}

tap() { # PORT
    transfers "http://192.168.77.1:$1" 30000000
}

"$@"
