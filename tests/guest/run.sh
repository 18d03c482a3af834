#!/bin/bash
# `guise run` from outside: exit statuses, streams, the terminal, `make run`'s script.
# shellcheck disable=SC2086 # GUEST_OPTIONS is a list of words
set -u
. "$(dirname "$0")/lib.sh"
export GUISE
kernel=$(kernel_image cloud) || { not_ok run "the kernel could not be fetched"; finish; }
initrd=$GUISE_CACHE/run.cpio
# The kernel reports a panic through a module, which has to be in the image.
pvpanic=$(find "${kernel%/boot/*}/lib/modules" -name pvpanic)
image "$initrd" --add "$pvpanic/pvpanic.ko:pvpanic.ko" --add "$pvpanic/pvpanic-mmio.ko:pvpanic-mmio.ko" || { not_ok run "the image could not be built"; finish; }
quiet="console=ttyS0 quiet loglevel=0 panic=-1"

# status NAME WANTED PATTERN ARGS...: guise's exit status, and its last sentence when PATTERN is not empty
status()
{
    local name=$1 wanted=$2 pattern=$3 got
    shift 3
    "$GUISE" run --kernel "$kernel" $GUEST_OPTIONS "$@" </dev/null >"$work/stdout" 2>"$work/stderr"
    got=$?
    if [ $got != "$wanted" ]; then
        not_ok "$name" "status $got instead of $wanted: $(tail -n 1 "$work/stderr")"
    elif [ -n "$pattern" ] && ! grep -q "^guise: .*$pattern" "$work/stderr"; then
        not_ok "$name" "stderr does not say '$pattern': $(tail -n 1 "$work/stderr")"
    else
        ok "$name"
    fi
}

in_guest() { echo "guise.cmd=$(printf '%s\n' "$*" | base64 -w0)"; }

status "powering off is 0" 0 "" --initrd "$initrd" --append "$quiet $(in_guest true)" --timeout 60
status "a reset under --no-reboot is 0" 0 "" --initrd "$initrd" --append "$quiet $(in_guest reboot -f)" --no-reboot --timeout 60
status "a panic is 1" 1 "panic" --initrd "$initrd" --no-reboot --timeout 60 \
    --append "$quiet $(in_guest 'insmod /pvpanic.ko; insmod /pvpanic-mmio.ko; echo c >/proc/sysrq-trigger')"
status "a triple fault is 1" 1 "triple fault" --initrd "$initrd" --append "$quiet reboot=t $(in_guest reboot -f)" --no-reboot --timeout 60
status "--timeout is 6" 6 "" --initrd "$initrd" --append "$quiet $(in_guest sleep 1000)" --timeout 3
status "a reset without --no-reboot boots again" 6 "" --initrd "$initrd" --append "$quiet $(in_guest 'echo again; reboot -f')" --timeout 20
if [ "$(grep -c again "$work/stdout")" -ge 2 ]; then ok "and again"; else not_ok "and again" "$(head -c 200 "$work/stdout")"; fi
status "statistics and log" 0 "" --initrd "$initrd" --append "$quiet $(in_guest true)" --timeout 90 --stats --log exc,irq,device --log-file "$work/log"
if [ "$(wc -l <"$work/stderr")" -ge 5 ] && [ -s "$work/log" ]; then ok "are written"; else not_ok "are written" "$(wc -l "$work/stderr" "$work/log")"; fi

status "a file as the serial line" 0 "" --initrd "$initrd" --append "$quiet $(in_guest echo to the file)" --serial "file:$work/serial" --timeout 60
if grep -q '^to the file' "$work/serial" && [ ! -s "$work/stdout" ]; then ok "has the output"; else not_ok "has the output" "$(head -c 100 "$work/serial")"; fi

# What is piped in is typed; what comes out is byte for byte.
piped=$(printf 'echo $((6 * 7))-typed\nexit\n' | timeout 90 "$GUISE" run --kernel "$kernel" --initrd "$initrd" --append "$quiet" --timeout 60 $GUEST_OPTIONS 2>"$work/stderr")
case $piped in *42-typed*) ok "stdin is typed" ;; *) not_ok "stdin is typed" "$piped" ;; esac
# shellcheck disable=SC2016 # for the guest
script=$(GUISE=$GUISE "$top/scripts/run-guest.sh" 'i=0; while [ $i -lt 3000 ]; do echo "line $i of many"; i=$((i + 1)); done; printf "\001\377end"; exit 42' -- $GUEST_OPTIONS 2>"$work/stderr" | sha256sum; exit "${PIPESTATUS[0]}")
got=$?
want=$({ for ((i = 0; i < 3000; i++)); do echo "line $i of many"; done; printf '\001\377end'; } | sha256sum)
if [ "$got" = 42 ]; then ok "run-guest.sh returns the command's status"; else not_ok "run-guest.sh returns the command's status" "$got: $(tail -n 1 "$work/stderr")"; fi
if [ "$script" = "$want" ]; then ok "output arrives byte for byte"; else not_ok "output arrives byte for byte" "another checksum"; fi

# In a terminal: a shell, its settings afterwards.
python3 - "$GUISE" run --kernel "$kernel" --initrd "$initrd" --append "$quiet" --timeout 60 $GUEST_OPTIONS <<'EOF'
import fcntl, os, pty, select, signal, struct, sys, termios, time

TIOCGPTN = 0x80045430

def session(end):
    """Starts guise in a terminal, waits for the prompt, lets end() act; returns (status, settings restored)."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.argv[1], sys.argv[1:])
    number = struct.unpack("i", fcntl.ioctl(fd, TIOCGPTN, bytes(4)))[0]
    slave = os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY)
    seen = b""

    def until(text, seconds=60):
        nonlocal seen
        limit = time.time() + seconds
        while text not in seen and time.time() < limit:
            if select.select([fd], [], [], 0.2)[0]:
                seen += os.read(fd, 4096)
        return text in seen

    before = session.cooked
    arrived = until(b"guest# ") and not termios.tcgetattr(slave)[3] & termios.ICANON
    good = arrived and end(pid, fd, until)
    status = None
    limit = time.time() + 20
    while time.time() < limit:
        if select.select([fd], [], [], 0)[0]:
            os.read(fd, 4096)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    time.sleep(0.3)
    restored = termios.tcgetattr(slave)[:4] == before[:4]
    os.close(slave)
    os.close(fd)
    return good, status, restored

master, slave = pty.openpty()
session.cooked = termios.tcgetattr(slave)

def leave_by_exit(pid, fd, until):
    os.write(fd, b"echo $((40 + 2))-echo\r")
    good = until(b"42-echo")
    os.write(fd, b"exit\r")
    return good

def leave_by_escape(pid, fd, until):
    os.write(fd, b"sleep 1000\r")
    time.sleep(2)
    os.write(fd, b"\x03")
    time.sleep(1)
    os.write(fd, b"echo $((40 + 3))-alive\r")
    good = until(b"43-alive")
    os.write(fd, b"\x1dq")
    return good

def killed(pid, fd, until):
    os.kill(pid, signal.SIGKILL)
    return True

for name, end, wanted in (("a shell in a terminal", leave_by_exit, 0), ("Ctrl-] q leaves, Ctrl-C is the guest's", leave_by_escape, 0),
                          ("kill -9", killed, signal.SIGKILL)):
    good, status, restored = session(end)
    if good and status == wanted and restored:
        print("ok", name)
    else:
        print("not ok", name, f"worked {good}, wait status {status}, terminal restored {restored}")
EOF
finish
