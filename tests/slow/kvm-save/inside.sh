#!/bin/sh
# Inside the outer machine (tests/guest/kvm-nested.sh) of tests/slow/kvm-save.sh: a machine with a disk and an agent is
# saved, goes back, moves, and becomes another one; and copies of it that run.
#
#   inside.sh CPUS [WORDS]       WORDS: more for the kernel's command line
export GUISE_DATA=/data GUISE_RUNTIME=/run/guise HOME=/root PATH=/bin:/
cpus=$1 append=${2:-} name=vm
busybox --install -s /bin
mkdir -p /data /run/guise /root
mv /libssl.so.3 /lib/ # the loader looks there

bad() { echo "inside: FAILED: $*"; tail -n 8 /data/vms/*/guise.log /data/vms/*/serial.log; exit 1; }
inside() { guise exec "$name" -- sh -c "$1"; }
is() # WHAT EXPECTED COMMAND: inside it says exactly that
{
    got=$(inside "$3" | xargs)
    [ "$got" = "$2" ] || bad "$1: '$got' instead of '$2'"
    echo "inside: $1"
}

guise image import /tiny.tar.zst --name tiny --quiet >/dev/null || bad "image import"
guise create --name vm --image tiny --engine kvm --memory 192M --cpus "$cpus" --append "$append" >/dev/null || bad create
guise start vm || bad start

# Memory that a copy gives back is zeroes to whoever gets it next (the balloon's free page reporting).
guise fork vm --name fresh --quiet >/dev/null || bad fork
name=fresh
own() { guise inspect fresh | sed -n 's/.*memory_private_bytes": \([0-9]*\).*/\1/p'; }
inside 'mkdir -p /dev/shm; mount -t tmpfs -o size=90% none /dev/shm; tr "\000" x </dev/zero | head -c 60m >/dev/shm/x'
full=$(own) i=0
inside 'rm /dev/shm/x'
until [ "$(own)" -lt $((full - 10000000)) ]; do i=$((i + 1)); [ $i -lt 30 ] || bad "it gives back nothing: $full bytes of its own, then $(own)"; sleep 1; done
echo "inside: a copy gives memory back"
inside 'head -c 60m /dev/zero >/dev/shm/x'
is "which is zeroes to whoever gets it next" yes '[ -z "$(tr -d "\\000" </dev/shm/x)" ] && echo yes'
guise kill fresh
name=vm

inside 'echo before >/root/file; sync; echo unsynced >/root/other
    (while :; do echo x >>/root/lines; sync; usleep 50000; done) >/dev/null 2>&1 &'
guise snapshot vm one --quiet || bad snapshot
guise snapshot vm two --quiet || bad snapshot
inside 'echo after >/root/file; rm /root/other; sync'
guise restore vm one --quiet || bad restore
is "the disk is what it was" "before unsynced" 'cat /root/file /root/other'
is "the guest's clock is the host's" yes "[ \$((\$(date +%s) - $(date +%s))) -le 1 ] && echo yes"
guise snapshot rm vm one two || bad "snapshot rm"
guise migrate vm there --quiet --downtime 3000 || bad migrate
name=there
is "the disk has moved" "before unsynced" 'cat /root/file /root/other'
is "and is written to" yes 'n=$(wc -l </root/lines); sleep 1; [ $(wc -l </root/lines) -gt $n ] && echo yes'
is "nothing is said about it" "" 'dmesg | grep -iE "stall|lockup|unstable|error|timeout"'
guise snapshot there s --quiet || bad snapshot
guise snapshot export there s /tmp/exported || bad export
guise restore --from /tmp/exported --clone clone --quiet || bad "restore --clone"
name=clone
is "another machine is made of it" "clone before" 'hostname; cat /root/file'
guise kill there

each() { for name in clone one two; do inside "$1"; done | sort -u | xargs; }
guise fork clone --name one --quiet >/dev/null || bad fork
inside 'mkdir -p /dev/shm; mount -t tmpfs -o size=90% none /dev/shm; head -c 20m /dev/urandom >/dev/shm/x; md5sum </dev/shm/x >/root/sum; sync'
guise fork clone --name two --quiet >/dev/null || bad "fork again"
[ "$(each hostname)" = "clone one two" ] || bad "names of copies: $(each hostname)"
[ "$(each 'cat /sys/class/net/eth0/address' | wc -w)" = 3 ] || bad "addresses of copies"
[ "$(each 'head -c 16 /dev/urandom | md5sum | cut -c -32' | wc -w)" = 3 ] || bad "random numbers of copies"
echo "inside: copies have names, addresses and random numbers of their own"
name=two
is "and the memory of that moment" yes 'md5sum </dev/shm/x | cmp - /root/sum && echo yes'
inside 'echo two >/root/file; sync'
name=clone
is "what one writes no other sees" before 'cat /root/file'
name=two
is "its clock is the host's" yes "[ \$((\$(date +%s) - $(date +%s))) -le 1 ] && echo yes"
guise fork two --name three --quiet >/dev/null || bad "a copy is not forked"
guise kill clone
name=three
is "a copy of a copy, without the machine" "three two" 'hostname; cat /root/file'
boot_id() { inside 'cat /proc/sys/kernel/random/boot_id' 2>/dev/null; }
before=$(boot_id) i=0
inside '(sleep 0.1; reboot -f) >/dev/null 2>&1 &'
until after=$(boot_id) && [ "$after" != "$before" ]; do i=$((i + 1)); [ $i -lt 100 ] || bad "a copy's guest does not reset"; sleep 1; done
is "its guest may reset" "three two" 'hostname; cat /root/file'
guise kill one && guise kill two && guise kill three
for i in 1 2; do
    [ "$(guise run tiny --engine kvm --memory 128M --append "$append" --warm -- echo warm)" = warm ] || bad "run --warm"
done
echo "inside: run --warm"
echo "inside: all is well"
