#!/bin/bash
# Layers of disks: there are as many as are needed, whatever was copied, saved and removed before; what the disk holds is the same, to the
# byte, while they become fewer and when that goes wrong.  GENERATIONS=12: copies of copies; and so many of one, but at least 18.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$here/machines.sh"

generations=${GENERATIONS:-12}
inside() { guise exec "$1" -- sh -c "$2"; }
layers() { find "$GUISE_DATA/vms/$1/layers" -name '*.overlay' | wc -l; }
pid() { guise inspect "$1" | sed -n 's/.*"pid": \([0-9]*\).*/\1/p'; }
# Files of random bytes and of zeroes over older ones, with their sums in the last: a round changes parts of what is there.
cat >change <<'SH'
cd /root; n=$1
head -c 1500000 /dev/urandom >file$n
for i in 1 2 3 4 5; do dd if=/dev/urandom of=common bs=4096 seek=$(((n * 37 + i * 101) % 500)) count=3 conv=notrunc 2>/dev/null; done
dd if=/dev/zero of=common bs=4096 seek=$(((n * 53) % 500)) count=20 conv=notrunc 2>/dev/null
rm -f file$((n - 4)); sha256sum file* common >sums; sync
SH
whole() { inside "$1" 'echo 3 >/proc/sys/vm/drop_caches; cd /root && sha256sum -c sums >/dev/null 2>/root/wrong && echo yes || cat /root/wrong'; }
change() { inside "$1" "sh /root/change $2"; }

guise launch tiny --name vm >"$work/stdout" 2>"$work/stderr" || { not_ok launch "$(tail -n 1 "$work/stderr")" && finish; }
guise cp change vm:/root/change
# --- snapshots ----------------------------------------------------------------------------------------------------
change vm 0
for i in 1 2 3 4 5; do
    change vm "$i"
    guise snapshot vm -q >/dev/null || not_ok "snapshot $i"
done
change vm 6
is "each snapshot has a layer" 5 layers vm
inside vm 'rm -f /root/enough; (until [ -e /root/enough ]; do sh /root/change 7; done; touch /root/over) >/dev/null 2>&1 &'
status "one between is removed while the guest writes" 0 guise snapshot rm vm snap-3
is "its layer becomes a part of the next one" 4 layers vm
status "the oldest" 0 guise snapshot rm vm snap-1
is "too" 3 layers vm
status "and the newest" 0 guise snapshot rm vm snap-5
is "which is a part of what it stood on" 3 layers vm
inside vm 'touch /root/enough; until [ -e /root/over ]; do sleep 0.1; done; sh /root/change 8'
is "the disk is whole" yes whole vm
status "one that is left is gone back to" 0 guise restore vm snap-2
is "and is what it was" "yes 2" eval 'echo "$(whole vm) $(inside vm "ls /root | sed -n s/file//p | sort -n | tail -n 1")"'
status "and the other" 0 guise restore vm snap-4
is "too" "yes 4" eval 'echo "$(whole vm) $(inside vm "ls /root | sed -n s/file//p | sort -n | tail -n 1")"'
guise kill vm
status "one that does not run" 0 guise snapshot rm vm snap-2 snap-4
is "has none when none is needed" 0 layers vm
guise start vm >/dev/null 2>&1
is "and a disk that is whole" yes whole vm
guise snapshot vm -q small >/dev/null
inside vm 'head -c 40000000 /dev/urandom >/root/large; cd /root; sha256sum large >>sums; sync'
guise kill vm
disk=$(stat -c %i "$GUISE_DATA/vms/vm/disk.overlay")
guise snapshot rm vm small
is "what is little is copied to what is much" "0 $disk" eval 'echo "$(layers vm) $(stat -c %i "$GUISE_DATA/vms/vm/disk.overlay")"'
guise start vm >/dev/null 2>&1
is "whichever it lies on" yes whole vm
inside vm 'cd /root && rm large && grep -v large sums >less; mv less sums; sync'

# --- copies -------------------------------------------------------------------------------------------------------
now=vm
failed=
for i in $(seq "$generations"); do
    guise fork "$now" --name "gen-$i" >/dev/null 2>"$work/stderr" || { failed="$i: $(tail -n 1 "$work/stderr")" && break; }
    guise rm --force "$now" >/dev/null
    now=gen-$i
    change "$now" $((8 + i))
    [ "$(whole "$now")" = yes ] || { failed="$i: $(whole "$now")" && break; }
done
is "$generations generations of copies, each of the one before, which is removed" "" echo "$failed"
if [ "$(layers "$now")" -le 9 ]; then ok "have few layers"; else not_ok "have few layers" "$(layers "$now")"; fi
guise kill "$now"
guise start "$now" >/dev/null 2>&1
is "and boot from them" yes whole "$now"

sides=$((generations > 18 ? generations : 18))
for i in $(seq "$sides"); do
    guise fork "$now" --name "side-$i" >/dev/null 2>"$work/stderr" || { not_ok "copy $i of one" "$(tail -n 1 "$work/stderr")" && break; }
    inside "$now" "echo $i >/root/count; sync"
    guise kill "side-$i"
done
if [ "$(layers "$now")" -le 16 ]; then ok "one that is copied again and again has few layers, too"; else not_ok "one that is copied again and again has few layers, too" "$(layers "$now")"; fi
is "and a disk that is whole" "yes $sides" eval 'echo "$(whole "$now") $(inside "$now" "cat /root/count")"'
guise start side-3 "side-$sides" >/dev/null 2>&1
is "as its copies have" "yes 2 yes $((sides - 1))" eval 'echo "$(whole side-3) $(inside side-3 "cat /root/count") $(whole "side-$sides") $(inside "side-$sides" "cat /root/count")"'
guise ls -a --json | grep -o '"name": "side[^"]*' | cut -d'"' -f4 | xargs "$GUISE" rm --force

# --- what goes wrong ----------------------------------------------------------------------------------------------
guise kill "$now"
guise start "$now" >/dev/null 2>&1
for moment in 0.01 0.03 0.06 0.1 0.2; do
    for victim in command machine; do
        inside "$now" 'head -c 30000000 /dev/urandom >/root/large; cd /root; sha256sum large >large.sum; sync'
        guise snapshot "$now" -q a >/dev/null
        inside "$now" 'head -c 10000000 /dev/urandom >/root/large2; cd /root; sha256sum large2 >>large.sum; sync'
        guise snapshot "$now" -q b >/dev/null
        "$GUISE" snapshot rm "$now" a b 2>/dev/null &
        command=$!
        sleep "$moment"
        if [ $victim = command ]; then kill -9 $command 2>/dev/null; else kill -9 "$(pid "$now")"; fi
        wait $command 2>/dev/null
        if [ $victim = machine ]; then guise start "$now" >/dev/null 2>"$work/stderr" || not_ok "starts again" "$(tail -n 1 "$work/stderr")"; fi
        is "the $victim is killed after $moment s" "yes 0" eval 'echo "$(whole "$now") $(inside "$now" "cd /root; sha256sum -c large.sum >/dev/null 2>&1; echo \$?")"'
        guise snapshot rm "$now" a 2>/dev/null
        guise snapshot rm "$now" b 2>/dev/null
    done
done
guise kill "$now"
guise start "$now" >/dev/null 2>&1
guise snapshot "$now" -q last >/dev/null
guise kill "$now"
guise snapshot rm "$now" last
is "none of that leaves more than there has to be" "0 yes" eval 'echo "$(layers "$now") $(guise start "$now" >/dev/null 2>&1; whole "$now")"'
guise rm --force "$now"

if mkdir -p full && mount -t tmpfs -o size=120M,mode=700 none full 2>/dev/null; then
    (
        export GUISE_DATA=$work/full GUISE_RUNTIME=$work/run-full
        rm -rf "$work/tiny"
        tiny_image tiny && guise launch tiny --name small >/dev/null 2>&1
        guise cp change small:/root/change
        change small 1
        guise snapshot small -q one >/dev/null
        change small 2
        inside small 'head -c 8000000 /dev/urandom >/root/large; sync'
        guise snapshot small -q two >/dev/null
        change small 3
        head -c 120M /dev/zero >full/filler 2>/dev/null
        for how in running stopped; do
            status "on a full disk a snapshot of one that is $how is removed" 0 guise snapshot rm small "$([ $how = running ] && echo one || echo two)"
        done
        is "the disk is whole" yes whole small
        rm full/filler
        guise kill small
        guise start small >/dev/null 2>&1
        guise snapshot small -q three >/dev/null
        guise snapshot rm small three
        is "and merged when there is room" "1 yes" eval 'echo "$(layers small) $(whole small)"'
        guise kill small
        exit $((failures > 0))
    ) || failures=$((failures + 1))
    umount full
else
    skip "a full disk" "nothing can be mounted here"
fi
finish
