#!/bin/bash
# Live migration, for long: a TCP connection to a machine that moves 100 times (MOVES=N), back and forth between two hosts that share a
# switch, and everybody killed at each step, 5 times over (ROUNDS=N).
. "$(dirname "$(readlink -f "$0")")/../guest/lib.sh"
. "$here/machines.sh"
moves=${MOVES:-100}
elsewhere() { GUISE_DATA=$work/data2 GUISE_RUNTIME=$work/run2 "$GUISE" "$@"; }
receivers=()
cleanup_moves()
{
    kill -9 "${receivers[@]}" 2>/dev/null
    elsewhere ls -a --json 2>/dev/null | grep -o '"pid": [0-9]*' | grep -o '[0-9]*' | xargs -r kill -9
    cleanup
}
trap cleanup_moves EXIT
mkdir -p "$work/data2" && cp -a "$work/data/images" "$work/data2/"
(GUISE_DATA=$work/data GUISE_RUNTIME=$work/run exec "$GUISE" receive "unix:$work/0.sock") >/dev/null 2>>"$work/said" & receivers+=($!)
(GUISE_DATA=$work/data2 GUISE_RUNTIME=$work/run2 exec "$GUISE" receive "unix:$work/1.sock") >/dev/null 2>>"$work/said" & receivers+=($!)
gcc -O2 -static -o talk "$top/tests/slow/migrations/talk.c" || { not_ok talk "cannot be built" && finish; }

for name in server client; do
    guise launch tiny --name $name --net "switch:$work/switch.sock" --memory 256M >"$work/stdout" 2>"$work/stderr" ||
        { not_ok "launch $name" "$(tail -n 1 "$work/stderr")" && finish; }
    guise cp talk $name:/root/talk
    [ $name = server ] && address=10.99.0.1 || address=10.99.0.2
    guise exec $name -- sh -c "ip link set eth0 up && ip addr add $address/24 dev eth0"
done
guise exec server -- sh -c '/root/talk serve 7000 >/root/served 2>&1 &'
sleep 0.5
guise exec client -- sh -c '/root/talk call 10.99.0.1 7000 /root/enough >/root/called 2>&1 &'
sleep 1

side=0 most=0 sum=0
for i in $(seq "$moves"); do
    at=guise
    [ $side = 0 ] || at=elsewhere
    $at migrate server "unix:$work/$((1 - side)).sock" --json --quiet >"$work/report" 2>"$work/stderr" ||
        { not_ok "move $i" "$(tail -n 1 "$work/stderr")" && break; }
    side=$((1 - side))
    still=$(sed -n 's/.*"downtime_us": \([0-9]*\).*/\1/p' "$work/report")
    most=$((still > most ? still : most)) sum=$((sum + still))
    [ -z "$(guise exec client -- cat /root/called)" ] || { not_ok "move $i" "$(guise exec client -- cat /root/called)" && break; }
done
guise exec client -- touch /root/enough
sleep 2
called=$(guise exec client -- cat /root/called)
case $called in
*" blocks, "*) ok "a TCP connection over $i moves: $called; stood still for $((sum / i)) us in the mean, $most at most" ;;
*) not_ok "a TCP connection over $i moves" "$called; $(guise exec server -- cat /root/served 2>&1)" ;;
esac
cleanup_moves 2>/dev/null
trap - EXIT
cd "$top" || exit 1
if ROUNDS=${ROUNDS:-5} GUISE=$GUISE "$here/migrate.sh" 2>/dev/null | grep '^not ok'; then
    failures=$((failures + 1))
else
    ok "everybody killed at each step, ${ROUNDS:-5} times over"
fi
finish
