#!/bin/sh
# Inside the outer machine of tests/guest/kvm-save.sh: a machine on the KVM engine is saved, goes back, moves, and is copied.
#
#   inside.sh CPUS ROUNDS [WORDS]       ROUNDS: how often all of that; WORDS: more for the kernel's command line
export GUISE_DATA=/data GUISE_RUNTIME=/run/guise HOME=/root PATH=/bin:/
cpus=$1 rounds=$2 append=${3:-} name=vm
busybox --install -s /bin
mkdir -p /data /run/guise /root

bad() { echo "inside: FAILED: $*"; tail -n 5 /data/vms/*/guise.log /data/vms/*/serial.log; exit 1; }
last() { grep '^tick' "/data/vms/$name/serial.log" | tail -n 1 | cut -d ' ' -f 2; }
# It goes on, and nothing is lost.
right()
{
    begin=$(last) i=0
    until [ "$(last)" -gt $((begin + 2)) ] 2>/dev/null; do
        i=$((i + 1))
        [ $i -lt 100 ] || bad "$1: $begin ticks, then $(last)"
        usleep 100000
    done
    ! grep -E 'WRONG|BUG|Oops|Call Trace|stall|unstable' "/data/vms/$name/serial.log" || bad "$1"
    echo "inside: $1: tick $(last)"
}

guise create --name vm --engine kvm --kernel /vmlinuz --initrd /guest.gz --memory 80M --cpus "$cpus" \
    --append "console=ttyS0 quiet panic=-1 $append" >/dev/null || bad create
guise start vm || bad start
i=0
until [ "$(last)" -gt 3 ] 2>/dev/null; do i=$((i + 1)); [ $i -lt 400 ] || bad "it does not come up"; usleep 100000; done
right "it runs"
for round in $(seq "$rounds"); do
    guise snapshot "$name" "s$round" --verbose 2>/tmp/said || bad "snapshot: $(cat /tmp/said)"
    tail -n 1 /tmp/said
    right "it runs on"
    size=$(wc -c <"/data/vms/$name/serial.log")
    guise restore --quiet "$name" "s$round" || bad restore
    grep -qx faults /proc/[0-9]*/task/*/comm || bad "it does not run before all of its memory is there"
    right "restored"
    tail -c "+$size" "/data/vms/$name/serial.log" | awk '/^tick/ { back += $2 < last; last = $2 } END { exit back != 1 }' ||
        bad "it was not taken back, or more than once"
    guise snapshot rm "$name" "s$round" || bad "snapshot rm"
    for i in 1 2; do
        to=vm-$round-$i
        guise migrate "$name" "$to" --downtime 3000 --verbose 2>/tmp/said || bad "migrate: $(cat /tmp/said)"
        tail -n 1 /tmp/said
        name=$to
        right "it has moved"
    done
done
# Copies, of copies, too, and of what was written since the copy before.
guise fork "$name" --name copy --verbose >/dev/null 2>/tmp/said || bad "fork: $(cat /tmp/said)"
grep 'stood still' /tmp/said
machine=$name
name=copy right "a copy runs"
right "so does the machine"
guise fork copy --name second --quiet >/dev/null || bad "the copy is not forked"
guise fork "$machine" --name again --quiet >/dev/null || bad "it is not forked again"
for name in copy second again "$machine"; do right "$name runs"; done
guise inspect copy | awk -F "[:,]" "/memory_(private|shared)_bytes/ { n += \$2 > 4000000 } END { exit n != 2 }" ||
    bad "nothing is shared: $(guise inspect copy | grep memory_)"
guise kill copy && guise kill again
guise snapshot second s --quiet && guise restore second s --quiet || bad "the copy's copy is not saved"
name=second right "it is saved and restored"
# No zeroes are taken for memory that is damaged.
dd if=/dev/urandom of=/data/vms/second/snapshots/s/state bs=64k seek=20 count=60 conv=notrunc 2>/dev/null
guise restore second s --quiet
i=0
until guise inspect second | grep -q 'the check sum of a piece of memory is wrong'; do
    i=$((i + 1))
    [ $i -lt 100 ] || bad "damaged memory is not met"
    usleep 100000
done
# It runs before its memory has come, of which some was sent before and is old.
name=$machine
guise migrate "$name" there --postcopy-after 1 --verbose 2>/tmp/said || bad "post-copy: $(cat /tmp/said)"
tail -n 1 /tmp/said
grep -q 'and by post-copy' /tmp/said || bad "it was not by post-copy"
name=there
right "it has moved by post-copy"
guise fork "$name" --name last --quiet >/dev/null || bad "it is not forked then"
for name in last "$name"; do right "$name runs"; done
guise kill "$name" && guise kill last
echo "inside: all is well"
