#!/bin/bash
# virtio-net with Linux's driver: the user network and published ports, its helper's death, a switch between two guests,
# a tap interface.
# shellcheck disable=SC2016,SC2046,SC2086 # lists of words; for other shells
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok kernel "could not be fetched"; finish; }
modules=$(kernel_modules "$kernel" virtio_net) || { not_ok modules "missing"; finish; }
gcc -std=gnu17 -O2 -static -o "$work/udp" "$here/devices/udp.c" || { not_ok udp "could not be built"; finish; }
initrd=$work/net.cpio
image "$initrd" $(module_additions $modules) --add "$here/devices/net-guest.sh:bin/net-guest:755" \
    --add "$here/devices/net-dhcp.sh:bin/net-dhcp:755" --add "$work/udp:bin/udp:755" || { not_ok image "no"; finish; }
load="$(module_commands $modules) true"
pids=()
cleanup()
{
    kill "${pids[@]}" 2>/dev/null
    GUISE_DATA=$work/data GUISE_RUNTIME=$work/runtime "$GUISE" kill porter 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT

# net_guest NAME COMMAND OPTIONS...: runs it; output in $work/NAME, what guise says in $work/NAME.err
net_guest()
{
    local name=$1 command=$2
    shift 2
    "$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$load && $command" -- --timeout 100 "$@" \
        >"$work/$name" 2>"$work/$name.err" </dev/null
}

serve() # NAME [ADDRESS]: net-host.py with a directory of that name; sets http and udp
{
    mkdir "$work/$1.d"
    python3 "$here/devices/net-host.py" "$work/$1.d" ${2:-} &
    pids+=($!)
    for _ in $(seq 100); do [ ! -s "$work/$1.d/servers" ] || break; sleep 0.1; done
    read -r http udp <"$work/$1.d/servers"
}

await() { for _ in $(seq "$2"); do [ ! -e "$1" ] || return 0; sleep 0.1; done; return 1; } # FILE TENTHS

line() # NAME OUTPUT PATTERN: a line of the guest's output that matches
{
    if grep -Eq "$3" "$work/$2"; then ok "$1"; else not_ok "$1" "$(tail -n 3 "$work/$2" "$work/$2.err" | tr '\n' ' ')"; fi
}

# What GET /data?N gives, by its definition in net-host.py.
data_sum()
{
    python3 -c 'import hashlib, sys
n = int(sys.argv[1])
block = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(4096))
print(hashlib.sha256((block * (n // len(block) + 1))[:n]).hexdigest())' "$1"
}
sum30=$(data_sum 30000000)
sum1=$(data_sum 1000000)

# --- user ---------------------------------------------------------------------------------------------------------

serve user
net_guest user "net-guest up && net-guest user $http $udp" --publish 0:80 --publish 0:53/udp &
guest=$!
if await "$work/user.d/ready" 600; then
    tcp_port=$(sed -n 's/.*127.0.0.1:\([0-9]*\) leads to the guest.s TCP port 80$/\1/p' "$work/user.err")
    udp_port=$(sed -n 's/.*127.0.0.1:\([0-9]*\) leads to the guest.s UDP port 53$/\1/p' "$work/user.err")
    timeout 20 python3 - "$tcp_port" "$udp_port" >"$work/published" 2>&1 <<'END'
import hashlib, socket, sys, urllib.request
data = urllib.request.urlopen("http://127.0.0.1:%s/file" % sys.argv[1], timeout=15).read()
print("file", hashlib.sha256(data).hexdigest())
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(b"to the guest", ("127.0.0.1", int(sys.argv[2])))
print("udp", s.recv(100).decode())
END
    if grep '^file ' "$work/published" | grep -qxFf - <(tr -d '\r' <"$work/user"); then ok "user: a published port"; else not_ok "user: a published port" "$(tail -n 1 "$work/published")"; fi
    if grep -q "^udp to the guest" "$work/published"; then ok "user: a published UDP port"; else not_ok "user: a published UDP port" "$(tail -n 1 "$work/published")"; fi
else
    not_ok "user: published ports" "the guest did not get there"
fi
touch "$work/user.d/go"
wait $guest
line "user: DHCP" user '^address 10\.0\.2\.15/24 router 10\.0\.2\.2 dns 10\.0\.2\.3$'
line "user: 30 MB from the host" user "^received 30000000 $sum30"
line "user: 30 MB to the host" user "^sent 30000000 $sum30"
line "user: UDP" user "^udp hello"
line "user: ping" user "^ping$"
line "user: ping by IPv6" user "^ping6$"
if grep -q 00000000000000000000000000000001 /proc/net/if_inet6 2>/dev/null; then
    line "user: 30 MB by IPv6" user "^received6 $sum30"
fi
line "user: ends well" user.err "the guest powered off"

"$GUISE" run --kernel "$kernel" --publish "$http:80" >"$work/busy" 2>&1 </dev/null
if [ $? = 1 ] && grep -q "cannot publish TCP port 127.0.0.1:$http: it is in use" "$work/busy"; then ok "user: a busy port is one sentence"; else not_ok "user: a busy port is one sentence" "$(tail -n 1 "$work/busy")"; fi

# --- ports of one that runs ---------------------------------------------------------------------------------------

export GUISE_DATA=$work/data GUISE_RUNTIME=$work/runtime
encoded=$(printf '%s\n' "$load && net-guest up && mkdir /www && echo hello >/www/file && httpd -f -p 80 -h /www" | base64 -w0)
if "$GUISE" create --name porter --kernel "$kernel" --initrd "$initrd" --net user --append "console=ttyS0 quiet panic=-1 guise.mark=x guise.cmd=$encoded" >"$work/porter" 2>&1 &&
    "$GUISE" start --wait=none porter >"$work/porter" 2>&1; then
    word=$("$GUISE" publish porter 0:80 2>"$work/porter")
    for _ in $(seq 60); do
        got=$(python3 -c 'import sys, urllib.request; print(urllib.request.urlopen("http://%s/file" % sys.argv[1], timeout=2).read().decode(), end="")' "${word%:*}" 2>/dev/null) && break
        sleep 0.5
    done
    if [ "$got" = hello ]; then ok "ports: published while it runs"; else not_ok "ports: published while it runs" "'$word' $(tail -n 1 "$work/porter")"; fi
    if [ "$("$GUISE" publish porter)" = "$word" ]; then ok "ports: listed"; else not_ok "ports: listed" "$("$GUISE" publish porter)"; fi
    "$GUISE" publish porter "${word#*:}" 2>"$work/porter"
    if [ $? = 5 ] && grep -q "is published already" "$work/porter"; then ok "ports: not twice"; else not_ok "ports: not twice" "$(cat "$work/porter")"; fi
    if "$GUISE" unpublish porter "$word" && [ -z "$("$GUISE" publish porter)" ]; then ok "ports: taken back"; else not_ok "ports: taken back" "$("$GUISE" publish porter)"; fi
    if "$GUISE" stats --json porter | grep -q '"net_received_bytes": [1-9]'; then ok "ports: counted"; else not_ok "ports: counted" "$("$GUISE" stats --json porter | grep net_)"; fi
    "$GUISE" stop --force porter 2>/dev/null
else
    not_ok "ports: start" "$(tail -n 1 "$work/porter")"
fi
unset GUISE_DATA GUISE_RUNTIME

# --- the helper's death ---------------------------------------------------------------------------------------------

serve outage
net_guest outage "net-guest up && net-guest outage $http" --net user &
guest=$!
if await "$work/outage.d/ready" 600; then
    # guise -> the helper's outer process -> the inner one, which handles the frames
    vm=$(pgrep -f -- " run --kernel .* --initrd $initrd")
    inner=$(pgrep -P "$(pgrep -P "$vm" -f helper-net)")
    kill -KILL "$inner"
fi
wait $guest
line "outage: the link went down and up" outage "^carrier changes 2"
line "outage: it works again" outage "^received 1000000 $sum1"
line "outage: the log says so" outage.err "ended by signal 9"

# --- a switch ---------------------------------------------------------------------------------------------------------

net_guest switch1 "net-guest up 192.168.7.1/24; net-guest exchange 192.168.7.2" --net "switch:$work/switch" &
guest=$!
net_guest switch2 "net-guest up 192.168.7.2/24; net-guest exchange 192.168.7.1" --net "switch:$work/switch,mtu=9000"
wait $guest
line "switch: from the first to the second" switch2 "^theirs $(sed -n 's/^mine //p' "$work/switch1")"
line "switch: from the second to the first" switch1 "^theirs $(sed -n 's/^mine //p' "$work/switch2")"
if [ -e "$work/switch" ]; then not_ok "switch: nothing stays behind" "$work/switch"; else ok "switch: nothing stays behind"; fi

# --- a tap interface ----------------------------------------------------------------------------------------------------

tap_test() # in a network of its own
{
    ip link set lo up && ip tuntap add mode tap name tap77 && ip addr add 192.168.77.1/24 dev tap77 &&
        ip link set tap77 up || return 1
    serve tap 192.168.77.1
    net_guest tap "net-guest up 192.168.77.2/24; net-guest tap $http" --net tap:tap77
}
if [ "$(id -u)" = 0 ] && [ -c /dev/net/tun ] && unshare -n true 2>/dev/null; then
    export -f tap_test serve net_guest
    export work here top kernel initrd load GUISE
    unshare -n bash -c 'pids=(); tap_test; kill "${pids[@]}"' 2>"$work/tap.log"
    line "tap: 30 MB from the host" tap "^received 30000000 $sum30"
    line "tap: 30 MB to the host" tap "^sent 30000000 $sum30"
else
    skip tap "needs root, /dev/net/tun and a network namespace"
fi
finish
