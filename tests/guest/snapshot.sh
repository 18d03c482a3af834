#!/bin/bash
# Snapshots: the guest goes on from where it was, its disk too, and nothing that goes wrong harms what there was before.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$here/machines.sh"

inside() { guise exec vm -- sh -c "$1"; }
tags() { guise snapshot ls vm --json | python3 -c 'import json, sys; print(*[s["tag"] + ("!" if s["damage"] else "") for s in json.load(sys.stdin)["snapshots"]])'; }

guise launch tiny --name vm >"$work/stdout" 2>"$work/stderr" || { not_ok launch "$(tail -n 1 "$work/stderr")" && finish; }
memory() { inside 'mkdir -p /dev/shm && mount -t tmpfs -o size=90% none /dev/shm'; }
memory
# A counter that lives in memory, and a program that computes: its checksum tells whether any register was lost.
inside 'awk "BEGIN { for (i = 1; i < 400000; i++) { x = x / 3 + i / 7; n = n + int(x) % 7 }; printf \"%.9f %d\", x, n }" >/dev/shm/right'
inside '(i=0; while :; do i=$((i+1)); echo $i >/dev/shm/count; usleep 10000; done) >/dev/null 2>&1 &
while :; do awk "BEGIN { for (i = 1; i < 400000; i++) { x = x / 3 + i / 7; n = n + int(x) % 7 }; printf \"%.9f %d\", x, n }" >/dev/shm/now
cmp -s /dev/shm/now /dev/shm/right && echo same >>/dev/shm/results || cp /dev/shm/now /dev/shm/wrong; done >/dev/null 2>&1 &'
inside 'echo before >/root/file; sync; echo unsynced >/root/other'

# --- there and back --------------------------------------------------------------------------------------------
before=$(inside 'cat /dev/shm/count')
is "its tag is printed" first guise snapshot vm first
sleep 1
later=$(inside 'cat /dev/shm/count')
if [ "$later" -gt "$before" ]; then ok "the guest runs on"; else not_ok "the guest runs on" "$before, then $later"; fi
inside 'echo after >/root/file; rm /root/other; sync; echo 1000000 >/dev/shm/mark'
is "another gets a number" snap-1 guise snapshot vm
is "both are listed" "first snap-1" tags
status "a tag is taken" 5 guise snapshot vm first

status "it goes back" 0 guise restore vm first
now=$(inside 'cat /dev/shm/count')
if [ "$now" -lt "$later" ] && [ "$now" -ge "$before" ]; then ok "memory is what it was"; else not_ok "memory is what it was" "$before, $later, then $now"; fi
is "and goes on" yes inside "sleep 0.5; [ \$(cat /dev/shm/count) -gt $now ] && echo yes"
is "the disk is what it was" "before unsynced" inside 'cat /root/file /root/other | xargs'
is "what came later is not there" "" inside 'cat /dev/shm/mark 2>/dev/null'
is "the guest's clock is the host's" yes inside "[ \$(( \$(date +%s) - $(date +%s) )) -le 1 ] && echo yes"
status "and forward" 0 guise restore vm snap-1
is "the disk of then" after inside 'cat /root/file'
is "the memory of then" 1000000 inside 'cat /dev/shm/mark'
inside 'rm -f /dev/shm/results; sleep 3'
is "computing goes on" yes inside '[ -s /dev/shm/results ] && [ ! -e /dev/shm/wrong ] && echo yes'
is "and nothing is said about it" "" inside 'dmesg | grep -iE "stall|lockup|unstable|error|nvme.*timeout"'
status "what is written now lasts" 0 inside 'echo kept >/root/kept; sync'

# --- stopped ------------------------------------------------------------------------------------------------------
guise kill vm
status "one that does not run has no state to keep" 5 guise snapshot vm
status "but goes on from what was kept" 0 guise restore vm first
is "as it was" before inside 'cat /root/file'
guise kill vm
guise start vm >"$work/stdout" 2>&1
is "and boots from the disk that it has" before inside 'cat /root/file'

# --- what goes wrong ----------------------------------------------------------------------------------------------
memory
inside 'head -c 100000000 /dev/urandom >/dev/shm/noise; echo here >/root/file; sync'
for moment in 0.005 0.03 0.1 0.2; do
    guise snapshot vm killed >/dev/null 2>&1 &
    sleep "$moment"
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
done
for _ in $(seq 50); do guise snapshot vm whole >/dev/null 2>"$work/stderr" && break || sleep 0.1; done
case "$(tags)" in
"first snap-1 whole" | "first snap-1 killed whole") ok "commands that are killed leave nothing behind, or all" ;;
*) not_ok "commands that are killed leave nothing behind, or all" "$(tags)" ;;
esac
guise snapshot rm vm killed 2>/dev/null
for signal in KILL INT; do
    env --default-signal=INT "$GUISE" snapshot vm ended >/dev/null 2>"$work/said" &
    for _ in $(seq 100); do [ -s "$GUISE_DATA/vms/vm/snapshots/.new-ended/state" ] && break || sleep 0.01; done
    kill -$signal $!
    wait $! 2>/dev/null
    [ $signal = KILL ] || is "one that is interrupted says so" "guise: interrupted: there is no snapshot ended" cat "$work/said"
    [ $signal = KILL ] || is "and leaves nothing" "" find "$GUISE_DATA/vms/vm/snapshots" -name .new-ended
    sleep 0.1
    status "the machine writes no more to it (SIG$signal)" 0 guise snapshot vm behind
    mkdir -p exported
    (exec env --default-signal=INT "$GUISE" snapshot export vm behind exported/one) 2>/dev/null &
    sleep 0.05
    kill -$signal $! 2>/dev/null
    wait $! 2>/dev/null
    case $(ls -A exported) in
    "" | one) ok "an export that is ended leaves nothing, or all (SIG$signal)" ;;
    *) not_ok "an export that is ended leaves nothing, or all (SIG$signal)" "$(ls -A exported)" ;;
    esac
    guise snapshot rm vm behind
done
is "the guest has noticed nothing" here inside 'cat /root/file'
guise kill vm
guise start vm >/dev/null 2>&1
is "nor its disk" here inside 'cat /root/file'
status "what came after is whole" 0 guise restore vm whole
is "as it was then" "here 100000000" inside '(cat /root/file; wc -c </dev/shm/noise) | xargs'

# The moment between the new overlay's getting the disk's name and the machine's hearing of it.
cat >"$work/dies.c" <<'C'
#include <signal.h>
#include <sys/socket.h>
ssize_t sendmsg(int socket, const struct msghdr *message, int flags) { raise(SIGKILL); return 0; }
C
gcc -shared -fPIC -w -o "$work/dies.so" "$work/dies.c" || finish
for command in snapshot fork; do
    (LD_PRELOAD=$work/dies.so exec "$GUISE" $command vm) >/dev/null 2>&1 &
    wait $! 2>/dev/null
    status "a $command that dies before the machine hears of its layer" 0 guise snapshot vm after-$command
done
inside 'echo later >/root/file; sync; echo 3 >/proc/sys/vm/drop_caches'
is "does the disk no harm" later inside 'cat /root/file'
guise snapshot rm vm after-snapshot after-fork 2>"$work/stderr"
is "nor keep its layers from being merged" "" cat "$work/stderr"
guise fork vm -q >/dev/null
fork_with_few_files() { (ulimit -n 8 && exec "$GUISE" fork vm); }
status "a fork that fails after one that did not" 1 fork_with_few_files
status "does no harm to the next" 0 guise fork vm
guise rm --force vm-1 vm-2 >/dev/null
inside 'echo here >/root/file; sync'

(guise snapshot vm dying >/dev/null 2>"$work/stderr" || echo $? >"$work/status") &
sleep 0.15
guise kill vm
wait $!
status "a machine that dies meanwhile leaves no snapshot" 0 guise start vm
if tags | grep -q dying; then ok "(it was faster)"; else ok "and says so"; fi
is "and its disk" here inside 'cat /root/file'

store=$GUISE_DATA/vms/vm/snapshots
cp "$store/whole/state" good
guise snapshot rm vm whole
mkdir -p "$store/bad"
head -c $(($(stat -c %s good) / 2)) good >"$store/bad/state"
status "one that is cut off is refused" 1 guise restore vm bad
says "with the reason" "bad/state is damaged: it is cut off, or was never finished"
is "and the machine runs on" here inside 'cat /root/file'
cp good "$store/bad/state"
printf 'XXXX' | dd of="$store/bad/state" bs=1 seek=$(($(stat -c %s good) - 400)) conv=notrunc 2>/dev/null
status "one with a wrong check sum, too" 1 guise restore vm bad
says "with that reason" "check sum"
is "it is listed as damaged" "bad! first snap-1" tags
cp good "$store/bad/state"
printf 'XXXX' | dd of="$store/bad/state" bs=1 seek=1000000 conv=notrunc 2>/dev/null
status "check finds damage in memory" 1 guise snapshot check vm bad
says "and says where" "of its memory is wrong"
status "and passes what is whole" 0 guise snapshot check vm first
guise snapshot rm vm bad

if mkdir -p full && mount -t tmpfs -o size=4M none full 2>/dev/null; then
    mv "$store" "$work/store" && mkdir full/store && ln -s "$work/full/store" "$store"
    status "a full disk" 1 guise snapshot vm full
    says "is said" "No space left"
    is "and leaves nothing" "" tags
    is "the guest runs on" here inside 'cat /root/file'
    rm "$store" && mv "$work/store" "$store"
else
    skip "a full disk" "nothing can be mounted here"
fi

# Memory comes out of the file when it is needed: then damage is seen, and no machine goes on with zeroes.
mkdir -p "$store/bad"
cp "$store/first/state" "$store/bad/state"
printf 'XXXX' | dd of="$store/bad/state" bs=1 seek=1000000 conv=notrunc 2>/dev/null
guise restore vm bad >"$work/stdout" 2>&1
for _ in $(seq 100); do guise inspect vm | grep -q '"state": "stopped"' && break || sleep 0.1; done
if guise inspect vm | grep -q 'is damaged: the check sum of a piece of memory is wrong'; then
    ok "a machine whose memory is damaged ends with that reason"
else
    not_ok "a machine whose memory is damaged ends with that reason" "$(guise inspect vm | grep reason)"
fi
guise snapshot rm vm bad
status "the one that is whole goes on" 0 guise restore vm first
is "what is needed first was written down" yes eval '[ -s "$store/first/working-set" ] && echo yes'
inside 'echo here >/root/file; sync'

# --- elsewhere ----------------------------------------------------------------------------------------------------
guise exec vm -- sh -c 'head -c 3000000 /dev/urandom >/root/noise; sync'
sum=$(inside 'sha256sum </root/noise')
guise snapshot vm away >/dev/null
status "a snapshot is exported" 0 guise snapshot export vm away "$work/away.snap"
is "a machine is made of it" copy guise restore --from "$work/away.snap" copy
is "with its disk" "$sum" guise exec copy -- sh -c 'sha256sum </root/noise'
guise kill copy
guise start copy >/dev/null 2>&1
is "from which it boots" "$sum" guise exec copy -- sh -c 'sha256sum </root/noise'
status "a name that is taken" 5 guise restore --from "$work/away.snap" copy
guise rm --force copy
guise exec vm -- sh -c 'cp /bin/busybox /root/beside; sync'
is "another machine is made of it, while the first runs" vm-1 guise restore --from "$work/away.snap" --clone --publish 0:80
both() { for m in vm vm-1; do "$@" $m; done; }
who() { guise exec "$1" -- sh -c 'hostname; cat /sys/class/net/eth0/address'; }
uuid() { guise inspect "$1" | sed -n 's/.*"uuid": "\([^"]*\).*/\1/p'; }
is "it knows its name" "vm vm-1" eval 'both who | grep vm | xargs'
is "it has a network card's address of its own" 2 eval 'both who | grep : | sort -u | wc -l'
is "and a uuid" 2 eval 'both uuid | sort -u | wc -l'
is "and a port, which the first has not" "0 1" eval 'echo "$(guise publish vm | wc -l) $(guise publish vm-1 | wc -l)"'
is "and random numbers" 2 eval 'for m in vm vm-1; do guise exec $m -- sh -c "head -c 16 /dev/urandom | od -An -tx1"; done | sort -u | wc -l'
is "and the disk of then" "$sum gone" guise exec vm-1 -- sh -c 'sha256sum </root/noise | tr "\n" " "; [ -e /root/beside ] || echo gone'
mine=$(who vm-1)
status "it goes back to what it came from" 0 guise restore vm-1 away
for _ in $(seq 50); do [ "$(who vm-1 | xargs)" = "$(echo "$mine" | xargs)" ] && break || sleep 0.1; done
is "and is who it is" "$mine" who vm-1
is "the next one has another name" vm-2 guise restore --from "$work/away.snap" --clone
is "or the one that it is given" twin guise restore --from "$work/away.snap" --clone twin
status "unless that is taken" 5 guise restore --from "$work/away.snap" --clone twin
guise rm --force vm-1 vm-2 twin
head -c 1000000 "$work/away.snap" >"$work/half.snap"
status "half of one" 1 guise restore --from "$work/half.snap" half
GUISE_DATA=$work/elsewhere status "without the image" 4 guise restore --from "$work/away.snap" nowhere
is "nothing is left of either" "vm" eval 'ls "$GUISE_DATA/vms" "$work/elsewhere/vms" 2>/dev/null | grep -v : | xargs'
guise snapshot rm vm away

# --- removing, and others -----------------------------------------------------------------------------------------
status "snapshots are removed" 0 guise snapshot rm vm first snap-1
is "they are gone" "" tags
status "and are not there twice" 4 guise snapshot rm vm first
guise restore vm 2>"$work/stderr"
says "without any there is nothing to go back to" "has no snapshots"
is "the disk does not miss them" here inside 'cat /root/file'
guise kill vm
guise start vm >/dev/null 2>&1
is "at a start neither" here inside 'cat /root/file'
# --- shared folders: what is open in them, and changes on the host meanwhile ------------------------------------------
mkdir -p shared/d
for i in $(seq 300); do echo "in $i" >"shared/d/file-$i"; done
for name in changed replaced unnamed; do echo "$name before" >"shared/$name"; done
touch shared/log
gcc -O1 -static -o folder "$here/devices/folder.c"
guise launch tiny --name sharing --share shared:/mnt >/dev/null 2>&1
guise cp folder sharing:/root/folder
guise exec sharing -- sh -c 'mkdir -p /dev/shm; mount -t tmpfs none /dev/shm; /root/folder >/dev/null 2>&1 & while [ ! -e /dev/shm/ready ]; do sleep 0.1; done'
status "a machine with shared folders is saved" 0 guise snapshot sharing first
found() { guise exec sharing -- sh -c 'touch /dev/shm/go; while [ ! -e /dev/shm/out ]; do sleep 0.1; done; cat /dev/shm/out' | xargs; }
is "it goes on with what it has open" "changed: changed before replaced: replaced before unnamed: unnamed before appended: 5 entries: 302 here: in 7" found
guise kill sharing
echo "changed since" >shared/changed
rm shared/replaced && echo "another file" >shared/replaced
status "it is restored" 0 guise restore sharing first
is "it has what is the same file, and ESTALE where there is none" "changed: changed since replaced: ESTALE unnamed: ESTALE appended: 5 entries: 302 here: in 7" found
is "by their names it finds others" "another file" guise exec sharing -- cat /mnt/replaced
is "nothing was lost" "line line" xargs <shared/log
status "such a snapshot is not exported" 7 guise snapshot export sharing first "$work/sharing.snap"
says "with the reason" "shared folders"
guise kill sharing
mv shared elsewhere
status "without the folder it is not restored" 1 guise restore sharing first
says "with that reason" "cannot share the directory"
guise rm --force sharing
mkdir shared
guise launch tiny --name sharing --share shared:/mnt:locks >/dev/null 2>&1
status "one with locks is refused" 7 guise snapshot sharing
says "with its reason" "has .locks., which the host"
finish
