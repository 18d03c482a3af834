#!/bin/sh
# Inside the outer machine (tests/guest/kvm-nested.sh) of tests/slow/kvm-save.sh: a machine with a disk and an agent is
# saved, goes back, moves, and becomes another one.
#
#   inside.sh CPUS [WORDS]       WORDS: more for the kernel's command line
export GUISE_DATA=/data GUISE_RUNTIME=/run/guise HOME=/root PATH=/bin:/
cpus=$1 append=${2:-} name=vm
busybox --install -s /bin
mkdir -p /data /run/guise /root

bad() { echo "inside: FAILED: $*"; tail -n 8 /data/vms/*/guise.log /data/vms/*/serial.log; exit 1; }
inside() { guise exec "$name" -- sh -c "$1"; }
is() # WHAT EXPECTED COMMAND: inside it says exactly that
{
    got=$(inside "$3" | xargs)
    [ "$got" = "$2" ] || bad "$1: '$got' instead of '$2'"
    echo "inside: $1"
}

guise image import /tiny.tar.zst --name tiny --quiet >/dev/null || bad "image import"
guise create --name vm --image tiny --engine kvm --memory 128M --cpus "$cpus" --append "$append" >/dev/null || bad create
guise start vm || bad start
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
guise kill there && guise kill clone
echo "inside: all is well"
