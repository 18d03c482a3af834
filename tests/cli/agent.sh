#!/bin/bash
# exec, shell, cp, tunnel, ssh: what they do here, with the agent as an ordinary process instead of in a guest.
set -u
top=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
GUISE=${GUISE:-$top/build/guise}
here=$top/tests/cli/agent
work=$(mktemp -d)
cd "$work" || exit 1
vm=$work/a.vsock
export GUISE_DATA=$work/data GUISE_RUNTIME=$work/run HOME=$work
failures=0
python3 "$here/vsock.py" "$vm" "$(dirname "$GUISE")/src/guest/guise-init" &
server=$!
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 100); do [ ! -S "$vm" ] || break; sleep 0.05; done

check() { # NAME CONDITION...
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        failures=$((failures + 1))
        echo "not ok $name status $status, stdout: $(head -c 200 out | tr '\n' '|'), stderr: $(head -n 3 err | tr '\n' '|')"
    fi
}
run() { # ARGS...: sets status; out, err
    timeout 30 "$GUISE" "$@" >out 2>err
    status=$?
}
says() { grep -qF -- "$1" err; }

run exec "$vm" -- sh -c 'echo out; echo err >&2; exit 3' </dev/null
check "status and two streams" eval '[ $status = 3 ] && [ "$(cat out)" = out ] && [ "$(cat err)" = err ]'
run exec "$vm" true </dev/null
check "the two dashes may be left out" eval '[ $status = 0 ]'
run exec "$vm" -- sh -c 'kill -SEGV $$' </dev/null
check "a signal is 128 and its number" eval '[ $status = 139 ]'
run exec "$vm" -- /no/such/thing </dev/null
check "a command that is not there is 127" eval '[ $status = 127 ] && says "no command" && [ ! -s out ]'
run exec "$vm" -- / </dev/null
check "one that cannot be run is 126" eval '[ $status = 126 ] && says "cannot run"'
run exec "$work/none.vsock" -- true </dev/null
check "no virtual machine is 125" eval '[ $status = 125 ] && says "cannot connect"'
run exec no-such-vm -- true </dev/null
check "no such name is 125" eval '[ $status = 125 ] && says "no-such-vm"'
run exec "$vm" </dev/null
check "a command must be given" eval '[ $status = 2 ]'
run exec "$vm" -- cat < <(echo input)
check "input is not read unless told" eval '[ $status = 0 ] && [ ! -s out ]'
run exec -i "$vm" -- cat <<<input
check "input is read if told" eval '[ $status = 0 ] && [ "$(cat out)" = input ]'
HERE=abc run exec "$vm" -e A=1 -e HERE -e NOT_SET -w /usr -- sh -c 'echo $A $HERE $NOT_SET; pwd' </dev/null
check "environment and directory" eval '[ "$(cat out)" = "1 abc
/usr" ]'
run shell "$vm" <<<'echo $((6 * 7)); exit 5'
check "a shell reads its commands" eval '[ $status = 5 ] && [ "$(cat out)" = 42 ]'
head -c 30000000 /dev/urandom >random
run exec -i "$vm" -- cat <random
check "bytes are bytes" eval '[ $status = 0 ] && cmp -s random out'
"$GUISE" exec "$vm" -- yes 2>err | head -n 1 >out
status=${PIPESTATUS[0]}
check "a reader that leaves ends the command" eval '[ $status = 141 ]'
"$GUISE" exec "$vm" -- sh -c 'trap "echo got; exit 9" TERM; echo on; while :; do sleep 0.02; done' >out 2>err </dev/null &
for _ in $(seq 200); do ! grep -q on out || break; sleep 0.05; done
kill -TERM $!
wait $!
status=$?
check "a signal goes to the command" eval '[ $status = 9 ] && grep -q got out'
"$GUISE" exec "$vm" -- sh -c 'trap "" TERM; echo on; while :; do sleep 0.02; done' >out 2>err </dev/null &
for _ in $(seq 200); do ! grep -q on out || break; sleep 0.05; done
kill -TERM $!; sleep 0.1; kill -TERM $!; sleep 0.1; kill -TERM $!
wait $!
status=$?
check "who insists ends guise" eval '[ $status = 143 ]'

# cp
mkdir -p tree/sub
echo one >tree/one
printf 'x' >tree/sub/-
ln -s one tree/link
ln -s /etc/passwd tree/elsewhere
mkfifo tree/pipe
truncate -s 8M tree/hole
echo end >>tree/hole
chmod 751 tree/sub
chmod 4755 tree/one
touch -d '2001-02-03 04:05:06.789' tree/one tree/sub
listing() { (cd "$1" && find . -printf '%P %y %m %s %t %l\n' | sort); }
run cp tree "$vm:$work/copy"
check "a directory to a new name" eval '[ $status = 0 ] && diff <(listing tree | sed "s/ 4755 / 755 /; s/^ d.*//; s/\(link\|elsewhere\).*//") <(listing copy | sed "s/^ d.*//; s/\(link\|elsewhere\).*//") >err && cmp tree/hole copy/hole'
check "links stay links" eval '[ "$(readlink copy/elsewhere)" = /etc/passwd ] && [ "$(readlink copy/link)" = one ]'
check "holes stay holes" eval '[ "$(stat -c %b copy/hole)" -lt 1000 ]'
mkdir into
run cp "$vm:$work/tree" into
check "into a directory under its name" eval '[ $status = 0 ] && [ -f into/tree/one ] && [ "$(stat -c %a into/tree/one)" = 755 ]'
run cp -a "$vm:$work/tree/." into
check "what is in it" eval '[ $status = 0 ] && [ -f into/one ] && [ "$(stat -c %a into/one)" = 4755 ]'
run cp tree/one random "$vm:$work/into"
check "several into a directory" eval '[ $status = 0 ] && cmp -s random into/random'
run cp tree/one random "$vm:$work/not-there"
check "several into none" eval '[ $status = 4 ] && [ ! -e not-there ]'
run cp "$vm:$work/random" -
check "to standard output" eval '[ $status = 0 ] && cmp -s random out'
"$GUISE" cp - "$vm:$work/from-stdin" <random >out 2>err
status=$?
check "from standard input" eval '[ $status = 0 ] && cmp -s random from-stdin'
run cp tree/one "$vm:$work/no/such/place"
check "a place that is not there" eval '[ $status = 4 ] && says "No such file"'
run cp "$vm:$work/nothing" .
check "a source that is not there" eval '[ $status = 4 ] && says "$work/nothing"'
run cp "$vm:$work/tree" random
check "a directory does not replace a file" eval '[ $status = 1 ] && [ -f random ]'
run cp tree/one tree/two
check "one side must be a guest" eval '[ $status = 2 ] && says "NAME:PATH"'
ln -s "$work/random" victim
run cp tree/one "$vm:$work/victim"
check "a link at the destination is replaced" eval '[ $status = 0 ] && [ ! -L victim ] && [ "$(stat -c %s random)" = 30000000 ]'
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("tree/socket")'
run cp tree "$vm:$work/with-socket"
check "what is left out is told" eval '[ $status = 0 ] || [ $status = 1 ]'

# tunnel
python3 -c '
import socket
s = socket.socket(socket.AF_UNIX); s.bind("echo"); s.listen(1)
c, _ = s.accept(); c.sendall(b"hello\n")
while b := c.recv(65536): c.sendall(b)
c.close()' &
for _ in $(seq 100); do [ ! -S echo ] || break; sleep 0.05; done
run tunnel "$vm" "$work/echo" <random
check "a tunnel carries all bytes both ways" eval '[ $status = 0 ] && cmp -s <(echo hello; cat random) out'
run tunnel "$vm" 1 </dev/null
check "a tunnel to nowhere" eval '[ $status = 5 ] && says "refused"'

# ssh, as far as no server is needed: a client that shows its arguments
mkdir bin
printf '#!/bin/sh\nprintf "%%s\\n" "$@"\n' >bin/ssh
chmod +x bin/ssh
PATH=$work/bin:$PATH run ssh "$vm" -L 1:localhost:2 ls -l
check "ssh gets its arguments" eval '[ $status = 0 ] && [ "$(tail -n 6 out | tr "\n" " ")" = "root a.vsock -L 1:localhost:2 ls -l " ]'
check "a key is made" eval '[ "$(stat -c %a data/ssh/id_ed25519)" = 600 ] && grep -q "^ssh-ed25519 AAAA" data/ssh/id_ed25519.pub'
if command -v ssh-keygen >/dev/null; then
    check "ssh-keygen reads it" eval 'ssh-keygen -y -f data/ssh/id_ed25519 | cut -d" " -f1,2 | diff - <(cut -d" " -f1,2 data/ssh/id_ed25519.pub)'
fi
cp data/ssh/id_ed25519 key.before
PATH=$work/bin:$PATH run ssh -u me "$vm"
check "it is made once, and the user may be named" eval 'cmp -s key.before data/ssh/id_ed25519 && [ "$(tail -n 2 out | head -n 1)" = me ]'

# QEMU's guest agent instead of ours
if command -v qemu-ga >/dev/null; then
    qemu-ga -m unix-listen -p "$work/b.qga" -t "$work" -f "$work/qga.pid" >qga.log 2>&1 &
    qga=$!
    for _ in $(seq 100); do [ ! -S b.qga ] || break; sleep 0.05; done
    run exec "$work/b.qga" -i -e A=1 -w /usr -- sh -c 'cat; echo $A; pwd; echo err >&2; exit 4' <<<input
    check "exec by QEMU's agent" eval '[ $status = 4 ] && [ "$(tr "\n" " " <out)" = "input 1 /usr " ] && [ "$(cat err)" = err ]'
    run exec "$work/b.qga" -- /no/such/thing </dev/null
    check "what is not there, by QEMU's agent" eval '[ $status = 127 ]'
    run exec -t "$work/b.qga" -- true </dev/null
    check "no terminal by QEMU's agent" eval '[ $status = 125 ] && says "no terminals"'
    mkdir by-qga
    run cp random "$work/b.qga:$work/by-qga/"
    check "a file in by QEMU's agent" eval '[ $status = 0 ] && cmp -s random by-qga/random'
    run cp "$work/b.qga:$work/by-qga/random" again
    check "and out" eval '[ $status = 0 ] && cmp -s random again'
    run cp tree "$work/b.qga:$work/by-qga/"
    check "but no directory" eval '[ $status = 7 ] && says "files only"'
    kill $qga
fi

# The terminal is as before, whatever the end is.
status=0
check "the terminal is restored" timeout 60 python3 "$here/terminal.py" "$GUISE" "$vm"
exit $((failures > 0))
