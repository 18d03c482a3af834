#!/bin/bash
# Live migration, for long: clients of a machine that moves 100 times (MOVES=N), back and forth between two hosts that share a switch: a TCP
# connection, an ssh session, PostgreSQL under pgbench (CLIENTS="tcp ssh postgres"); and everybody killed at each step, 5 times over
# (ROUNDS=N, 0: not).
# shellcheck disable=SC2034 # what clients.sh uses
. "$(dirname "$(readlink -f "$0")")/../guest/lib.sh"
. "$here/machines.sh"
. "$top/tests/slow/lib.sh"
. "$slow/migrations/clients.sh"
moves=${MOVES:-100}
server=10.99.0.1 client=10.99.0.2
elsewhere() { GUISE_DATA=$work/data2 GUISE_RUNTIME=$work/run2 "$GUISE" "$@"; }
receivers=()
cleanup_moves()
{
    kill -9 "${receivers[@]}" 2>/dev/null
    elsewhere ls -a --json 2>/dev/null | grep -o '"pid": [0-9]*' | grep -o '[0-9]*' | xargs -r kill -9
    cleanup
}
trap cleanup_moves EXIT

# moving_image: an image of Debian with servers, in the stores of both hosts; built once a week, kept in the cache's.
moving_image()
{
    (
        export GUISE_DATA=$GUISE_CACHE/data
        "$top/scripts/setup.sh" image >&2
        exec 9>"$GUISE_CACHE/debian.lock"
        flock 9
        [ -z "$(find "$GUISE_CACHE/moving.built" -mtime -7 2>/dev/null)" ] || ! "$GUISE" image info moving >/dev/null 2>&1 || exit 0
        say "building the image moving"
        "$GUISE" image build moving --include postgresql,openssh-server,openssh-client --replace >/dev/null 2>"$work/stderr" &&
            touch "$GUISE_CACHE/moving.built"
    ) || { tail -n 1 "$work/stderr" >&2 && return 1; }
}

on_server() { if [ $side = 0 ]; then guise exec server -- sh -c "$1"; else elsewhere exec server -- sh -c "$1"; fi; }
on_client() { guise exec client -- sh -c "$1"; }

launch_both() # IMAGE
{
    local name address
    [ "$1" = tiny ] || rm -rf "$work/data/images" "$work/data2/images"
    mkdir -p "$work/data2"
    if [ "$1" = tiny ]; then
        cp -a "$work/data/images" "$work/data2/"
    else
        for name in data data2; do ln -s "$GUISE_CACHE/data/images" "$work/$name/images"; done
    fi
    for name in server client; do
        guise launch "$1" --name $name --net "switch:$work/switch.sock" --memory 512M >"$work/stdout" 2>"$work/stderr" || return 1
        [ $name = server ] && address=$server || address=$client
        guise exec $name -- sh -c "ip link set eth0 up && ip addr add $address/24 dev eth0" || return 1
    done
}

# What there is of a run before stays nowhere: machines of one name, and images, are others the next time.
begin_hosts()
{
    (GUISE_DATA=$work/data GUISE_RUNTIME=$work/run exec "$GUISE" receive "unix:$work/0.sock") >/dev/null 2>>"$work/said" & receivers=($!)
    (GUISE_DATA=$work/data2 GUISE_RUNTIME=$work/run2 exec "$GUISE" receive "unix:$work/1.sock") >/dev/null 2>>"$work/said" & receivers+=($!)
}

end_hosts()
{
    kill "${receivers[@]}" 2>/dev/null
    guise rm --force client >/dev/null 2>&1
    if [ $side = 0 ]; then guise rm --force server; else elsewhere rm --force server; fi >/dev/null 2>&1
}

# Prints nothing, or what went wrong; `sum` and `most` are microseconds that the machine stood still.
move_on() # CLIENT
{
    local at still wrong
    most=0 sum=0
    for moved in $(seq "$moves"); do
        at=guise
        [ $side = 0 ] || at=elsewhere
        $at migrate server "unix:$work/$((1 - side)).sock" --json --quiet >"$work/report" 2>"$work/stderr" ||
            { failed="move $moved: $(tail -n 1 "$work/stderr")" && return 1; }
        side=$((1 - side))
        still=$(sed -n 's/.*"downtime_us":\([0-9]*\).*/\1/p' "$work/report")
        most=$((still > most ? still : most)) sum=$((sum + still))
        wrong=$("$1_wrong")
        [ -z "$wrong" ] || { failed="move $moved: $wrong" && return 1; }
        sleep "${PAUSE:-0}"
    done
}

for name in ${CLIENTS:-tcp ssh postgres}; do
    side=0 failed=
    image=$("${name}_image") && begin_hosts && launch_both "$image" || { not_ok "$name: launch" "$(tail -n 1 "$work/stderr")" && end_hosts && continue; }
    if ! "${name}_begin" >"$work/stdout" 2>&1; then
        not_ok "$name: begins" "$(tail -n 1 "$work/stdout")"
    elif sleep 1; ! move_on "$name"; then
        not_ok "$name over $moves moves" "$failed"
    else
        seen=$("${name}_end")
        complaints=$(on_server 'dmesg | grep -iE "i/o error|timeout|corrupt|stall|lockup|BUG:" | head -n 3')
        case $seen$complaints in
        "wrong:"* | "") not_ok "$name over $moves moves" "$seen" ;;
        "$seen") ok "$name over $moves moves: $seen; stood still for $((sum / moves)) us in the mean, $most at most" ;;
        *) not_ok "$name over $moves moves" "the guest says: $complaints" ;;
        esac
    fi
    end_hosts
done
cleanup_moves 2>/dev/null
trap - EXIT
cd "$top" || exit 1
[ "${ROUNDS:-5}" = 0 ] && finish
if ROUNDS=${ROUNDS:-5} GUISE=$GUISE "$here/migrate.sh" 2>/dev/null | grep '^not ok'; then
    failures=$((failures + 1))
else
    ok "everybody killed at each step, ${ROUNDS:-5} times over"
fi
finish
