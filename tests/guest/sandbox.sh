#!/bin/bash
# The proof of the sandbox: a guest that has found a hole tries what it must not be able to do.
#
#   tests/guest/sandbox.sh [ATTEMPT...]
#
# The hole is made for the purpose: guise-backdoor (backdoor/backdoor.c), in which a guest has its VM's process try a
# thing, on a vCPU's thread and on the event loop's.  Each attempt must end with an error or with the process.  As root,
# and as a user without any rights; without the sandbox, most of them must work, or they would prove nothing.
set -u
. "$(dirname "$0")/lib.sh"

build=$(dirname "$(readlink -f "$GUISE")")
ninja -C "$build" tests/guest/guise-backdoor >"$work/ninja.log" 2>&1 ||
    { not_ok build "$(tail -n 1 "$work/ninja.log")"; finish; }
cp "$build/tests/guest/guise-backdoor" "$work/guise" # where everybody may read it
for thread in vcpu:0x5e0 loop:0x5e4; do
    gcc -std=gnu17 -Wall -O1 -ffreestanding -fno-pic -no-pie -mno-red-zone -mgeneral-regs-only -fno-stack-protector \
        -fcf-protection=none -fno-asynchronous-unwind-tables -fno-omit-frame-pointer -nostdlib -static \
        -DPORT="${thread#*:}" \
        -Wl,--build-id=none,-z,noexecstack,-T,"$here/priv/link.ld",--no-warn-rwx-segments \
        -o "$work/${thread%:*}.elf" "$here/priv/start.S" "$here/priv/lib.c" "$here/backdoor/guest.c" ||
        { not_ok build "the guest does not compile"; finish; }
done

# Things that are there to be reached: a process, a file, sockets.  All belong to the user that is tested, and allow everybody.
chmod 755 "$work"
mkdir "$work/loot" "$work/home"
sleep 1000 &
victim=$!
trap 'kill $victim $server 2>/dev/null; rm -rf "$work"' EXIT
python3 - "$work/loot" <<'END' &
import os, socket, sys, time
unix = socket.socket(socket.AF_UNIX)
unix.bind(sys.argv[1] + "/socket")
os.chmod(sys.argv[1] + "/socket", 0o777)
unix.listen(100)
tcp = socket.create_server(("127.0.0.1", 0), backlog=100)
with open(sys.argv[1] + "/port.new", "w") as f:
    f.write(str(tcp.getsockname()[1]))
os.rename(sys.argv[1] + "/port.new", sys.argv[1] + "/port")
time.sleep(1000)
END
server=$!
for _ in $(seq 100); do [ ! -e "$work/loot/port" ] || break; sleep 0.1; done
port=$(cat "$work/loot/port")
exec 9<"$work/loot/port" # left open, as by a careless shell
[ "$(ulimit -n)" -le 2000 ] || exec 2000<"$work/loot/port"
inode=$(stat -c %i "$work/loot/port")

argument() # ATTEMPT
{
    case $1 in
    open | openat2 | stat | ring) echo "$work/loot/secret" ;;
    create) echo "$work/loot/created" ;;
    unlink | rename) echo "$work/loot/secret" ;;
    descriptors) echo "$inode" ;;
    ptrace | kill | other-memory) echo "$victim" ;;
    connect-unix) echo "$work/loot/socket" ;;
    connect-tcp) echo "$port" ;;
    *) echo - ;;
    esac
}

as_user() { if [ "$1" = root ] || [ "$(id -u)" != 0 ]; then shift; else shift; set -- setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; fi; "$@"; }

run_attempt() # USER THREAD SANDBOX ATTEMPT: prints "result N" or "died"; what guise says in $work/stderr
{
    as_user "$1" env HOME="$work/home" GUISE_TEST_SECRET=1 setsid "$work/guise" run --kernel "$work/$2.elf" --engine soft --memory 64M \
        --sandbox "$3" --no-reboot --timeout 20 --disk "$work/loot/disk" --append "$4 $(argument "$4")" \
        </dev/null 2>"$work/stderr" | tr -d '\r' | grep -a '^result' || true
    if [ "${PIPESTATUS[0]}" -ge 128 ] || grep -q 'stopped: the sandbox' "$work/stderr"; then echo died; fi
}

attempts=("$@")
[ $# -gt 0 ] || attempts=(open openat2 create unlink rename stat descriptors execve fork namespace ptrace kill kill-group
    other-memory connect-unix connect-tcp exec-memory exec-protect setuid mount chroot module new-uring ring type debuggable
    environment)
users=(user)
[ "$(id -u)" != 0 ] || users=(root user)

for user in "${users[@]}"; do
    owner=$(id -u)
    [ "$user" = root ] || [ "$owner" != 0 ] || owner=65534
    truncate -s 1M "$work/loot/disk"
    echo secret >"$work/loot/secret"
    [ "$(id -u)" != 0 ] || chown -R "$owner" "$work/loot"
    for attempt in "${attempts[@]}"; do
        for thread in vcpu loop; do
            outcome=$(run_attempt $user $thread on "$attempt")
            # A ring's own answer to an operation that it does not do.
            if [ "$outcome" = "result 0" ] || [ -z "$outcome" ] || { [ "$attempt" = ring ] && [ "$outcome" != "result 13" ]; }; then
                not_ok "$user-$thread-$attempt" "${outcome:-nothing was tried}: $(tail -n 1 "$work/stderr")"
            else
                ok "$user-$thread-$attempt ($outcome: $(sed -n 's/.*system call \([a-z0-9_]*\)\..*/\1/p' "$work/stderr" | tail -n 1))"
            fi
        done
    done
done

[ "$(cat "$work/loot/secret")" = secret ] && ok "the secret is still there" || not_ok "the secret is still there" gone
[ ! -e "$work/loot/created" ] && ok "nothing was created" || not_ok "nothing was created" "it was"
kill -0 $victim && ok "the victim lives" || not_ok "the victim lives" "it does not"

# The same without the sandbox: these work, so the ones above prove something.
for attempt in open create stat execve exec-memory connect-unix connect-tcp new-uring environment descriptors; do
    outcome=$(run_attempt "${users[0]}" loop off "$attempt")
    if [ "$attempt" = execve ]; then
        grep -q . "$work/stderr" && ok "without: $attempt" # it became another program, which said nothing
    elif [ "$outcome" = "result 0" ]; then
        ok "without: $attempt"
    else
        not_ok "without: $attempt" "$outcome: it proves nothing that it fails inside"
    fi
done
finish
