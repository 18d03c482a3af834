#!/bin/bash
# Live migration: the guest goes on elsewhere, and whoever dies at whatever moment, exactly one machine runs and has lost nothing.
#
#   ROUNDS=1      how often each case of who dies when is gone through (tests/slow/migrate.sh does more)
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$here/machines.sh"

# Two hosts: each with directories of its own, and somebody who receives.
declare -A data=([one]=$work/data [two]=$work/data2) runtime=([one]=$work/run [two]=$work/run2) receiver
storage=copy # they are on one file system, where disks would stay where they are
more() { if [ "$1" = migrate ]; then echo "--storage=$storage"; fi; }
# shellcheck disable=SC2046 # one word, or none
on() { GUISE_DATA=${data[$1]} GUISE_RUNTIME=${runtime[$1]} timeout 60 "$GUISE" "${@:2}" $(more "$2"); } # HOST COMMAND...
# shellcheck disable=SC2046
begin() { GUISE_DATA=${data[$1]} GUISE_RUNTIME=${runtime[$1]} exec "$GUISE" "${@:2}" $(more "$2"); }
other() { if [ "$1" = one ]; then echo two; else echo one; fi; }
receive() # HOST: somebody new receives there
{
    [ -z "${receiver[$1]}" ] || { kill -9 "${receiver[$1]}" && wait "${receiver[$1]}"; } 2>/dev/null
    rm -f "$work/$1.sock"
    (begin "$1" receive "unix:$work/$1.sock") >>"$work/$1.out" 2>>"$work/$1.err" &
    receiver[$1]=$!
    for _ in $(seq 100); do [ -S "$work/$1.sock" ] && return || sleep 0.05; done
}
cleanup_migrate()
{
    ip netns del guise-$$ 2>/dev/null
    for host in one two; do
        on $host ls -a --json 2>/dev/null | grep -o '"pid": [0-9]*' | grep -o '[0-9]*' | xargs -r kill -9
        [ -z "${receiver[$host]}" ] || kill -9 "${receiver[$host]}" 2>/dev/null
    done
    cleanup
}
trap cleanup_migrate EXIT
mkdir -p "$work/data2" && cp -a "$work/data/images" "$work/data2/"
receive one
receive two

# A counter that lives in memory and on the disk, and a program that notices when they differ.
cat >counter.sh <<'S'
i=0
echo 0 >/root/count
while :; do
    i=$((i + 1))
    [ "$(cat /root/count)" = $((i - 1)) ] || echo "$i: the disk has $(cat /root/count)" >>/dev/shm/wrong
    echo $i >/root/count.new && mv /root/count.new /root/count
    echo $i >/dev/shm/count
    usleep 2000
done
S
boot() # HOST OPTION...
{
    on "$1" launch tiny --name vm "${@:2}" >"$work/stdout" 2>"$work/stderr" || { not_ok launch "$(tail -n 1 "$work/stderr")" && finish; }
    on "$1" cp counter.sh vm:/root/counter.sh
    on "$1" exec vm -- sh -c 'mkdir -p /dev/shm; mount -t tmpfs none /dev/shm; sh /root/counter.sh >/dev/null 2>&1 &'
    for _ in $(seq 50); do [ "$(count "$1")" -gt 0 ] 2>/dev/null && break || sleep 0.1; done
}
# A connection to the agent that is made while the guest has not yet been told that it has moved ends with the others.
count() # HOST
{
    local got
    for _ in 1 2 3; do
        got=$(on "$1" exec vm -- cat /dev/shm/count 2>&1)
        [ "$got" -ge 0 ] 2>/dev/null && break
    done
    echo "$got"
}
stopped() # PID
{
    for _ in $(seq 400); do
        case $(ps -o stat= "$1") in T*) return 0 ;; '') return 1 ;; esac
        sleep 0.05
    done
    return 1
}
state() { on "$1" inspect vm 2>/dev/null | sed -n 's/.*"state": "\(.*\)".*/\1/p'; }
pid() { on "$1" inspect vm 2>/dev/null | sed -n 's/.*"pid": \([0-9][0-9]*\).*/\1/p'; }

# What the machine there has lost since it had counted so far, in words.
lost() # HOST BEFORE
{
    local first second wrong
    first=$(count "$1")
    for _ in 1 2 3 4 5 6 7 8; do # its disk may be slow
        sleep 0.2
        second=$(count "$1")
        [ "$second" = "$first" ] || break
    done
    wrong=$(on "$1" exec vm -- sh -c 'head -n 1 /dev/shm/wrong 2>/dev/null')
    [ -z "$wrong" ] || echo "$wrong"
    { [ "$first" -ge "$2" ] && [ "$second" -gt "$first" ]; } 2>/dev/null || echo "counted $2, then $first, then $second"
}
runs() # NAME HOST BEFORE: it runs there and nowhere else, and nothing is lost
{
    local why elsewhere
    elsewhere=$(state "$(other "$2")")
    why=$(lost "$2" "$3")
    [ "$elsewhere" != running ] || why="it runs at the other; $why"
    if [ -z "$why" ]; then ok "$1"; else not_ok "$1" "$why; $(tail -n 1 "$work/stderr")" && finish; fi
}

# --- there and back ---------------------------------------------------------------------------------------------------
boot one
before=$(count one)
status "it moves" 0 on one migrate vm "unix:$work/two.sock" --json
runs "and runs there" two "$before"
is "the source has nothing of it" "[]" on one ls -a --json
before=$(count two)
status "and back, by several streams" 0 on two migrate vm "unix:$work/one.sock" --streams 3
runs "and runs here" one "$before"
is "the guest's clock is the host's" yes on one exec vm -- sh -c "[ \$(( \$(date +%s) - $(date +%s) )) -le 1 ] && echo yes"
before=$(count one)
status "it stays on this host, under a new name" 0 on one migrate vm new
is "which runs" yes on one exec new -- sh -c "[ \$(cat /dev/shm/count) -ge $before ] && echo yes"
status "and gets its own back" 0 on one migrate new vm
runs "the same machine" one "$before"
is "and nothing is said about it" "" on one exec vm -- sh -c 'dmesg | grep -iE "stall|lockup|unstable|error|nvme.*timeout"'

# --- how fast --------------------------------------------------------------------------------------------------------------
says_report() # NAME WORDS
{
    if grep -q "$2" "$work/stdout"; then ok "$1"; else not_ok "$1" "$(tr -d '\n' <"$work/stdout")"; fi
}
number() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" "$work/stdout" | tail -n 1; }
at_least() # NAME LEAST GOT
{
    if [ "$3" -ge "$2" ]; then ok "$1"; else not_ok "$1" "$3 instead of $2"; fi
}
before=$(count one)
status "a limit" 0 on one migrate vm "unix:$work/two.sock" --bandwidth 40M --json
at_least "holds" $(($(number sent_bytes) / 50000)) "$(number elapsed_ms)"
runs "the machine runs" two "$before"
cat >writer.c <<'C'
#include <stdlib.h>

int main(void)
{
    const size_t size = 20 << 20;
    volatile char *memory = malloc(size);
    for (size_t i = 0;; i = (i + 4096) % size) {
        memory[i]++;
        for (volatile unsigned work = 0; work < 20000; work++)
            ;
    }
}
C
gcc -O2 -static -o writer writer.c
on two cp writer vm:/root/writer
on two exec vm -- sh -c '/root/writer >/dev/null 2>&1 & echo $! >/dev/shm/writer'
status "a guest that writes faster than can be sent" 0 on two migrate vm "unix:$work/one.sock" --bandwidth 30M --downtime 50 --json
at_least "is slowed down" 20 "$(number throttle_percent)"
at_least "and stands still for no longer than it may, about" "$(number downtime_us)" 200000
on one exec vm -- sh -c 'kill $(cat /dev/shm/writer)'
runs "and runs" one "$before"

# --- post-copy: the same guest, which writes faster than can be sent ---------------------------------------------------------
# Memory whose pages say what they are, and a program that notices when one says something else.
cat >checker.c <<'C'
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void)
{
    const size_t pages = (24 << 20) / 4096;
    volatile uint64_t *memory = malloc(pages * 4096);
    for (size_t i = 0; i < pages; i++)
        memory[i * 512] = memory[i * 512 + 511] = i;
    for (uint64_t round = 0, at = 0;; at++) {
        if (at == pages) {
            at = 0;
            round++;
        }
        size_t i = at * 2654435761 % pages;
        if (memory[i * 512] != memory[i * 512 + 511] || memory[i * 512] % pages != i) {
            FILE *f = fopen("/dev/shm/wrong", "a");
            fprintf(f, "page %zu says %llu and %llu\n", i, (unsigned long long)memory[i * 512], (unsigned long long)memory[i * 512 + 511]);
            fclose(f);
        }
        memory[i * 512] = memory[i * 512 + 511] = i + pages * (round % 1000 + 1);
        if (at % 64 == 0)
            usleep(1000);
    }
}
C
gcc -O2 -static -o checker checker.c
on one cp checker vm:/root/checker
on one exec vm -- sh -c '/root/checker >/dev/null 2>&1 &'
sleep 0.5
is_less() { if [ "$3" -lt "$2" ]; then ok "$1"; else not_ok "$1" "$3 is not less than $2"; fi; } # NAME MOST GOT
before=$(count one)
status "one that does not converge goes on there by post-copy" 0 on one migrate vm "unix:$work/two.sock" --bandwidth 30M --downtime 50 --postcopy --json
says_report "how it goes is said meanwhile" '^{"state":"sending","round":1,"sent_bytes":[1-9][0-9]*,"left_bytes":[1-9]'
says_report "with the guest's own pace" '"dirty_bytes_per_second":[1-9][0-9]*,"remaining_ms":'
says_report "and how its memory arrives" '^{"state":"arriving",'
is "each line is an object, the last the result" moved python3 -c 'import json, sys; print([json.loads(l) for l in open(sys.argv[1])][-1]["state"])' "$work/stdout"
says_report "it was that" '"postcopy":true'
is "nobody was slowed down" 0 number throttle_percent
is_less "it stood still for less than 150 ms" 150000 "$(number downtime_us)"
is_less "all was over soon" 20000 "$(number elapsed_ms)"
runs "and nothing is lost" two "$before"
before=$(count two)
status "at once, by several streams" 0 on two migrate vm "unix:$work/one.sock" --streams 3 --postcopy-after 0 --json
says_report "which is post-copy as well" '"postcopy":true'
runs "and back" one "$before"

# --- ports, copies, restored machines ---------------------------------------------------------------------------------------
on one publish vm 127.0.0.1:$((30000 + $$ % 10000)):80 >/dev/null
status "one that ports lead to" 0 on one migrate vm moved
for _ in $(seq 40); do [ -z "$(on one publish moved)" ] || break; sleep 0.1; done
is "takes them along" "127.0.0.1:$((30000 + $$ % 10000)):80" on one publish moved
is "a copy of it" moved-1 on one fork moved
status "moves as well" 0 on one migrate moved-1 other
is "with what it had" yes on one exec other -- sh -c "[ \$(cat /dev/shm/count) -ge $before ] && echo yes"
on one rm --force other
on one snapshot moved earlier >/dev/null
on one restore moved earlier
on one snapshot rm moved earlier
status "and one that was restored a moment ago" 0 on one migrate moved vm
runs "does, too" one "$before"

# --- refusals, before anything is sent ----------------------------------------------------------------------------------
cat >stranger.py <<'P'
# says something to who receives, and prints how it is refused
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[1])
hello = {"guise": "migration", "version": 1, "id": "0" * 32, "streams": 1, "cpuid": "", "memory_used": 1, "disk_used": 1,
         "machine": json.load(open(sys.argv[2]))}
hello["machine"]["name"] = hello["machine"]["uuid"] = "other"
for word in sys.argv[3:]:
    key, value = word.split("=", 1)
    hello[key] = json.loads(value)
s.sendall(json.dumps(hello).encode() + b"\n")
print(json.loads(s.makefile().readline()).get("refused"))
P
stranger() { python3 stranger.py "$work/two.sock" "$work/data/vms/vm/vm.json" "$@"; }
refused() # NAME PATTERN WORD...
{
    local name=$1 pattern=$2 got
    shift 2
    got=$(stranger "$@" 2>&1)
    if echo "$got" | grep -q "$pattern"; then ok "$name"; else not_ok "$name" "$got"; fi
}
refused "a newer version is refused" "update guise at the destination" version=4
refused "a CPU that has more" "the destination.s CPU" cpuid='"070000000000000000000000ffffffffffffffffffffffff"'
refused "one that makes no sense" "makes no sense" 'cpuid="xyz"'
refused "no memory" "MiB left" memory_used=1000000000000000
refused "no room on the disk" "MiB left" disk_used=1000000000000000
refused "no machine" "\"name\" is missing" 'machine={"schema_version": 1}'
refused "no such image" "is not at the destination" "machine=$(sed 's/"sha256-[0-9a-f]*"/"sha256-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"/; s/"name": "vm"/"name": "other"/' "$work/data/vms/vm/vm.json" | tr -d '\n')"
is "nothing is left of any" "[]" on two ls -a --json
mkdir shared
on one launch tiny --name sharing --share shared:/mnt >/dev/null 2>&1
status "shared folders stay" 7 on one migrate sharing "unix:$work/two.sock"
says "with the reason" "shared folders"
on one exec sharing -- sh -c 'echo hello >/mnt/file; exec 3</mnt/file; (while [ ! -e /root/go ]; do sleep 0.1; done; cat <&3 >/root/out) >/dev/null 2>&1 &'
status "unless they are there, too" 0 on one migrate sharing "unix:$work/two.sock" --folders
is "with what is open in them" hello on two exec sharing -- sh -c 'touch /root/go; while [ ! -s /root/out ]; do sleep 0.1; done; cat /root/out'
on two rm --force sharing
on one snapshot vm kept >/dev/null
status "one with snapshots stays" 5 on one migrate vm "unix:$work/two.sock"
says "with that reason" "would stay behind"
on one snapshot rm vm kept
status "nobody receives there" 5 on one migrate vm "unix:$work/nobody.sock"
runs "it runs on" one "$(count one)"

# --- by TCP -------------------------------------------------------------------------------------------------------------------
port=$((20000 + $$ % 10000))
(begin two receive "tcp://127.0.0.1:$port") >>"$work/two.out" 2>>"$work/two.err" &
tcp=$!
sleep 0.5
on one migrate vm "tcp://127.0.0.1:$port" 2>"$work/stderr"
says "a host that is not known is not trusted" "is not one of those trusted here"
on one receive trust "$(on two receive key)"
on one migrate vm "tcp://127.0.0.1:$port" 2>"$work/stderr"
says "nor does it trust us" "does not trust this host: .guise receive trust $(on one receive key)"
on two receive trust "$(on one receive key)"
before=$(count one)
status "by TLS it moves" 0 on one migrate vm "tcp://127.0.0.1:$port" --streams 2 --postcopy-after 0
runs "and runs there" two "$before"
status "and comes back" 0 on two migrate vm "unix:$work/one.sock"

# The command has the connections: they are cut when it dies, and the guest waits for what it touches.
before=$(count one)
(GUISE_STOP_AT=arriving begin one migrate vm "tcp://127.0.0.1:$port" --postcopy-after 0 --bandwidth 10M) >"$work/stdout" 2>"$work/stderr" </dev/null &
command=$!
stopped $command || { not_ok "post-copy by TLS" "it never ran there: $(tail -n 1 "$work/stderr")" && finish; }
kill -9 $command
wait $command 2>/dev/null
sleep 1
is "connections are cut while memory arrives: it is there" running state two
is "and memory still here" moved state one
status "it goes on" 0 on one migrate --resume vm
runs "with nothing lost" two "$before"
kill -9 $tcp
status "and back" 0 on two migrate vm "unix:$work/one.sock"
status "trust ends" 0 on one receive distrust "$(on two receive key)"
is "and is gone" "" on one receive trust

if [ "$(id -u)" = 0 ] && ip netns add guise-$$ 2>/dev/null; then
    ip link add guise-$$ type veth peer name inner netns guise-$$
    ip addr add 10.231.7.1/30 dev guise-$$ && ip link set guise-$$ up
    ip -n guise-$$ addr add 10.231.7.2/30 dev inner && ip -n guise-$$ link set inner up
    (GUISE_DATA=${data[two]} GUISE_RUNTIME=${runtime[two]} exec ip netns exec guise-$$ "$GUISE" receive tcp://10.231.7.2) >>"$work/two.out" 2>>"$work/two.err" &
    tcp=$!
    on one receive trust "$(on two receive key)"
    sleep 0.5
    cuts=given-up
    [ "${ROUNDS:-1}" = 1 ] || cuts="sending complete given-up arriving" # each takes as long as it takes to notice
    for place in $cuts; do
        before=$(count one)
        how=()
        [ $place != arriving ] || how=(--postcopy-after 0 --bandwidth 10M)
        (GUISE_STOP_AT=$place begin one migrate vm tcp://10.231.7.2 "${how[@]}") >"$work/stdout" 2>"$work/stderr" </dev/null &
        command=$!
        stopped $command
        ip link set guise-$$ down
        kill -CONT $command
        if [ $place = sending ]; then
            wait $command
            runs "the network is cut when $place" one "$before"
            ip link set guise-$$ up
            sleep 12 # until who receives has noticed, too
            continue
        fi
        sleep 12
        ip link set guise-$$ up # the command asks until then
        wait $command
        runs "the network is cut when $place, and comes back" two "$before"
        status "back again" 0 on two migrate vm "unix:$work/one.sock"
    done
    kill -9 $tcp
    ip netns del guise-$$
else
    skip "cutting the network" "there are no network namespaces here"
fi

# --- a full disk ----------------------------------------------------------------------------------------------------------------
mkdir -p full
if mount -t tmpfs -o size=120M,mode=700 none full 2>/dev/null; then
    on one exec vm -- sh -c 'head -c 20000000 /dev/urandom >/root/noise; sync'
    data[three]=$work/full runtime[three]=$work/run3
    cp -a "$work/data/images" full/
    receive three
    (GUISE_STOP_AT=asked begin one migrate vm "unix:$work/three.sock") >"$work/stdout" 2>"$work/stderr" </dev/null &
    command=$!
    stopped $command
    sleep 1
    head -c 200000000 /dev/zero >full/filler 2>/dev/null
    before=$(count one)
    kill -CONT $command
    wait $command
    says "a full disk at the destination is said" "No space left"
    runs "and the machine runs on" one "$before"
    kill -9 "${receiver[three]}"
    umount -l full
else
    skip "a full disk" "nothing can be mounted here"
fi

# --- who dies when ------------------------------------------------------------------------------------------------------
at=one options=
dies() # PLACE VICTIM: the command stops at PLACE, VICTIM is killed, and the command goes on if it can
{
    before=$(count $at)
    # shellcheck disable=SC2086 # words
    (GUISE_STOP_AT=$1 begin $at migrate vm "unix:$work/$(other $at).sock" $options) >"$work/stdout" 2>"$work/stderr" </dev/null &
    local command=$!
    stopped "$command" || { not_ok "$1: $2" "the command never came there: $(tail -n 1 "$work/stderr")" && finish; }
    case $2 in
    source) kill -9 "$(pid $at)" ;;
    destination) kill -9 "$(pid "$(other $at)")" ;;
    receiver) kill -9 "${receiver[$(other $at)]}" ;;
    command) kill -9 "$command" ;;
    esac
    [ "$2" != receiver ] || receive "$(other $at)"
    kill -CONT "$command" 2>/dev/null
    wait "$command" 2>/dev/null
}
# The same when who receives stops at PLACE.
dies_there() # PLACE VICTIM
{
    local to
    to=$(other $at)
    before=$(count $at)
    GUISE_STOP_AT=$1 receive "$to"
    # shellcheck disable=SC2086 # words
    (begin $at migrate vm "unix:$work/$to.sock" $options) >"$work/stdout" 2>"$work/stderr" </dev/null &
    local command=$!
    stopped "${receiver[$to]}" || { not_ok "$1: $2" "it never came there: $(tail -n 1 "$work/stderr")" && finish; }
    case $2 in
    source) kill -9 "$(pid $at)" ;;
    destination) kill -9 "$(pid "$to")" ;;
    receiver) kill -9 "${receiver[$to]}" && sleep 0.2 ;;
    command) kill -9 "$command" ;;
    esac
    kill -CONT "${receiver[$to]}" 2>/dev/null
    [ "$2" != receiver ] || receive "$to"
    wait "$command" 2>/dev/null
    receive "$to"
}
moved() { at=$(other $at); }

for _ in $(seq "${ROUNDS:-1}"); do
    for place in receiving sending complete given-up; do
        dies $place destination
        runs "the destination dies when $place" $at "$before"
    done
    for place in asked receiving sending complete; do
        dies $place command
        sleep 0.2
        runs "the command dies when $place" $at "$before"
    done
    for place in asked receiving sending; do
        dies $place receiver
        runs "who receives dies when $place" $at "$before"
    done
    dies complete source
    moved
    runs "the source dies when the destination has all of it" $at "$before"
    dies given-up source
    moved
    runs "the source dies when it has given up" $at "$before"
    dies given-up receiver
    moved
    runs "who receives dies when the source has given up" $at "$before"

    dies given-up command
    is "the command dies when the source has given up: it stands still" moved state $at
    is "at both" incoming state "$(other $at)"
    status "it cannot be started" 5 on $at start vm
    status "it is brought to its end" 0 on $at migrate --resume vm
    moved
    runs "and has moved" $at "$before"
    dies given-up command
    kill -9 "$(pid "$(other $at)")"
    on $at migrate --resume vm 2>"$work/stderr"
    says "the destination dies as well: it is asked for" "stays here, and runs"
    runs "and stays" $at "$before"
    dies told command
    sleep 0.5
    status "the command dies when the destination was told" 0 on $at migrate --resume vm
    moved
    runs "it has moved" $at "$before"

    # Post-copy: the same up to where it runs; then the source has memory of it that is nowhere else.
    options="--postcopy-after 0 --bandwidth 10M"
    dies complete destination
    runs "post-copy, the destination dies when complete" $at "$before"
    dies complete command
    sleep 0.2
    runs "the command" $at "$before"
    dies given-up destination
    runs "the destination dies when the source has given up" $at "$before"
    dies given-up command
    is "the command: it stands still" moved state $at
    status "it cannot run here without all memory" 5 on "$(other $at)" migrate --here vm
    status "it is brought to its end" 0 on $at migrate --resume vm
    moved
    runs "and has moved" $at "$before"
    dies arriving command
    is "the command dies when memory arrives: it runs" running state "$(other $at)"
    status "and all arrives" 0 on $at migrate --resume vm
    moved
    runs "with nothing lost" $at "$before"
    dies arriving receiver
    moved
    runs "who receives dies when memory arrives" $at "$before"
    dies_there arrives receiver
    moved
    runs "and that one, before it knows" $at "$before"

    dies arriving destination
    says "the destination dies when memory arrives: nobody decides but the user" "migrate --here vm. lets it go on"
    is "it stands still here" moved state $at
    status "it does not start there" 5 on "$(other $at)" start vm
    status "nor go on by itself" 1 on $at migrate --resume vm
    status "here it is to run" 0 on $at migrate --here vm
    says "from then on" "from the moment when it left"
    runs "and runs" $at "$before"
    on "$(other $at)" rm vm
    options=

    dies_there received-go receiver
    moved
    runs "who receives dies before it can let it run" $at "$before"
    dies_there received-go destination
    runs "the destination dies before it can run" $at "$before"
    dies_there ran receiver
    moved
    runs "who receives dies before it can say that it runs" $at "$before"
done
status "a machine that is in no migration has none to resume" 5 on $at migrate --resume vm

# The loss that post-copy means; the machine is booted anew afterwards, from what it had flushed.
options="--postcopy-after 0 --bandwidth 10M"
on $at exec vm -- sh -c 'echo kept >/root/kept; sync'
dies arriving source
says "the source dies when memory arrives" "has ended: its process has died here"
is "it has ended there" stopped state "$(other $at)"
on "$(other $at)" inspect vm >"$work/stderr"
says "and says why" "its source has died before all of its memory was here"
is "nothing is left at the source" "[]" on $at ls -a --json
status "it boots from its disk" 0 on "$(other $at)" start vm
is "which is whole" kept on "$(other $at)" exec vm -- cat /root/kept

# --- storage that both see ------------------------------------------------------------------------------------------------
# A disk of the host's, and a program that notices when a write to it is lost.
cat >sectors.c <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static _Alignas(4096) uint64_t block[512];
    int fd = open(argv[1], O_RDWR | O_DIRECT);
    for (uint64_t i = 1;; i++) {
        off_t at = i % 64 * 4096, last = (i - 1) % 64 * 4096;
        if (pread(fd, block, sizeof block, last) != sizeof block || (i > 1 && block[511] != i - 1)) {
            FILE *f = fopen("/dev/shm/wrong", "a");
            fprintf(f, "sector: %llu instead of %llu\n", (unsigned long long)block[511], (unsigned long long)i - 1);
            fclose(f);
        }
        block[0] = block[511] = i;
        if (pwrite(fd, block, sizeof block, at) != sizeof block || (i % 16 == 0 && fdatasync(fd)))
            i--;
        usleep(500);
    }
}
C
gcc -O2 -static -o sectors sectors.c
on $at rm --force vm >/dev/null
on "$(other $at)" rm --force vm >/dev/null
at=one options=
receive one
receive two
truncate -s 8M host.img
boot one --disk host.img,serial=host
on one cp sectors vm:/root/sectors
begin_sectors() # HOST
{
    # shellcheck disable=SC2016 # the guest's
    on "$1" exec vm -- sh -c 'for d in /sys/block/nvme*; do grep -q host $d/device/serial && break; done; /root/sectors /dev/${d##*/} >/dev/null 2>&1 &'
}
begin_sectors one
writer() # FILE: has somebody the lock of who writes to it?
{
    python3 -c 'import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("nobody")
except OSError:
    print("somebody")' "$1"
}
own() { echo "${data[$1]}/vms/vm/disk.overlay"; }

status "a disk of the host's is not copied" 7 on one migrate vm "unix:$work/two.sock"
says "which is said" "takes --storage auto or shared"
storage=auto
status "nor by post-copy" 7 on one migrate vm "unix:$work/two.sock" --postcopy
storage=shared
status "that is a contradiction then" 2 on one migrate vm "unix:$work/two.sock" --postcopy
before=$(count one)
file=$(stat -c %i "$(own one)")
status "disks that both see stay where they are" 0 on one migrate vm "unix:$work/two.sock" --json
says_report "which is said" '"storage":"shared"'
runs "and the machine runs there" two "$before"
is "on the same file" "$file" stat -c %i "$(own two)"
storage=auto
before=$(count two)
status "and back, without that they have to" 0 on two migrate vm "unix:$work/one.sock" --json
says_report "they stay" '"storage":"shared"'
runs "as it was" one "$before"
storage=copy

storage=shared
dies sending destination
runs "shared disks, the destination dies when sending" one "$before"
dies complete command
sleep 0.2
runs "the command dies when complete" one "$before"
dies complete source
moved
runs "the source dies when the destination has all of it" $at "$before"
dies given-up destination
runs "the destination dies when it is given up" $at "$before"
dies_there received-go destination
runs "or before it can run" $at "$before"
dies given-up command
is "the command dies when it is given up: nobody writes" "nobody nobody" echo "$(writer host.img) $(writer "$(own $at)")"
status "it is brought to its end" 0 on $at migrate --resume vm
moved
runs "and has moved" $at "$before"
is "who runs it writes" "somebody somebody" echo "$(writer host.img) $(writer "$(own $at)")"
dies complete command
sleep 0.5
on $at stop --force vm
status "what waits there is of no use when the source has gone on" 5 on "$(other $at)" migrate --here vm
says "which is said" "has been written to since"
on "$(other $at)" rm --force vm >/dev/null
on $at start vm
dies given-up command
status "nobody lets it go on by its memory where it may not be the last who wrote" 5 on $at migrate --here vm
says "which is said" "may have written to them"
on "$(other $at)" rm --force vm >/dev/null
on $at stop --force vm
status "it can be booted" 1 on $at migrate --here vm
says "which is said" "boots it from its disk"
status "from its disks" 0 on $at start vm
is "which are whole" yes on $at exec vm -- sh -c '[ $(cat /root/count) -gt 0 ] && echo yes'

if [ "$(id -u)" = 0 ] && unshare -m true 2>/dev/null; then
    truncate -s 8M other.img
    kill -9 "${receiver[two]}"
    rm -f "$work/two.sock"
    # shellcheck disable=SC2016 # that one's
    GUISE_DATA=${data[two]} GUISE_RUNTIME=${runtime[two]} unshare -m sh -c \
        'mount --bind other.img host.img && exec "$GUISE" receive "unix:$0"' "$work/two.sock" >>"$work/two.out" 2>>"$work/two.err" &
    receiver[two]=$!
    for _ in $(seq 100); do [ -S "$work/two.sock" ] && break || sleep 0.05; done
    storage=auto
    status "a file of the same name is not taken for it" 7 on one migrate vm "unix:$work/two.sock"
    says "which is said" "host.img is another file here"
    receive two
    on one rm --force vm
    boot one
    kill -9 "${receiver[two]}"
    rm -f "$work/two.sock"
    mkdir elsewhere
    # shellcheck disable=SC2016 # that one's
    GUISE_DATA=$work/elsewhere/data2 GUISE_RUNTIME=${runtime[two]} unshare -m sh -c \
        'mount --bind . elsewhere && exec "$GUISE" receive "unix:$0"' "$work/two.sock" >>"$work/two.out" 2>>"$work/two.err" &
    receiver[two]=$!
    for _ in $(seq 100); do [ -S "$work/two.sock" ] && break || sleep 0.05; done
    storage=shared
    status "a file that cannot have a second name there is not shared" 5 on one migrate vm "unix:$work/two.sock"
    says "which is said" "cannot be given a second name"
    storage=auto before=$(count one)
    status "it is copied" 0 on one migrate vm "unix:$work/two.sock" --json
    says_report "which is said" '"storage":"copied"'
    on two rm --force vm
    boot one --disk host.img,serial=host --share shared:/mnt
    kill -9 "${receiver[two]}"
    rm -f "$work/two.sock"
    # shellcheck disable=SC2016 # that one's
    GUISE_DATA=$work/elsewhere/data2 GUISE_RUNTIME=${runtime[two]} unshare -m sh -c 'mount --bind . elsewhere &&
        exec "$GUISE" receive "unix:$0" --map "${0%/*}=${0%/*}/elsewhere"' "$work/two.sock" >>"$work/two.out" 2>>"$work/two.err" &
    receiver[two]=$!
    for _ in $(seq 100); do [ -S "$work/two.sock" ] && break || sleep 0.05; done
    storage=shared file=$(stat -c %i "$(own one)")
    on one exec vm -- sh -c 'echo mapped >/mnt/mapped'
    status "what is elsewhere there is mapped" 0 on one migrate vm "unix:$work/two.sock" --folders
    is "and is the same file" "$file" stat -c %i "$(own two)"
    is "in its words, too" "$work/elsewhere" sed -n 's/.*"directory": "\(.*\)".*/\1/p' "$work/data2/vms/vm/vm.json"
    is "and folders" mapped on two exec vm -- cat /mnt/mapped
else
    skip "a file of the same name" "nothing can be mounted here"
fi
# One that moves already: what is asked meanwhile is refused, and does it no harm.
guise launch tiny --name busy >/dev/null
guise exec busy -- sh -c 'mkdir -p /dev/shm && mount -t tmpfs none /dev/shm; head -c 60000000 /dev/urandom >/dev/shm/noise'
guise fork busy -q >/dev/null
env --default-signal=INT "$GUISE" migrate busy there --bandwidth 10M -q >/dev/null 2>"$work/said" &
sleep 0.7
kill -INT $!
wait $!
is "one that is interrupted stays" "guise: interrupted: busy stays here" tail -n 1 "$work/said"
is "and nothing is there of it" "busy busy-1" eval 'guise ls -a --json | grep -o "\"name\": \"[^\"]*" | cut -d\" -f4 | grep -E "busy|there" | sort | xargs'
guise migrate busy there --bandwidth 40M >"$work/stdout" 2>&1 &
moving=$!
sleep 0.5
status "one that moves is not moved" 5 guise migrate busy elsewhere
says "as is said" "another command is moving busy"
status "nor copied" 5 guise fork busy
says "as is said" "busy is on its way to another process"
wait $moving
is "it arrives all the same, with its disk" "there" eval 'guise exec there -- sh -c "echo there >/root/file; sync; cat /root/file"'
is "and nothing else does" "busy-1 there" eval 'guise ls -a --json | grep -o "\"name\": \"[^\"]*" | cut -d\" -f4 | grep -E "busy|there|elsewhere" | sort | xargs'
(exec "$GUISE" migrate there killed --bandwidth 10M -q) >/dev/null 2>&1 &
sleep 0.7
kill -9 $!
wait $! 2>/dev/null
for _ in $(seq 50); do guise migrate there behind -q >/dev/null 2>&1 && break || sleep 0.1; done
is "one whose command is killed can be moved again" "there" guise exec behind -- cat /root/file
is "and nothing is left of it" "" eval 'ls -A "$GUISE_RUNTIME" | grep migrate'
guise rm --force behind busy-1 >/dev/null
# A disk of layers, known by where they were first: each move makes names of them in another directory.
guise launch tiny --name layered >/dev/null
guise exec layered -- sh -c 'echo before >/root/file; sync'
guise fork layered -q >/dev/null
guise migrate layered twice >/dev/null && guise migrate twice thrice >/dev/null
guise exec thrice -- sh -c 'echo after >>/root/file; sync'
guise stop thrice >/dev/null && guise start thrice >/dev/null
is "a machine on layers that has moved twice starts again" "before after" eval 'guise exec thrice -- cat /root/file | xargs'
guise stop layered-1 >/dev/null && guise start layered-1 >/dev/null
is "and so does its copy" before guise exec layered-1 -- cat /root/file
guise rm --force thrice layered-1 >/dev/null
finish
