#!/usr/bin/env python3
"""terminal.py GUISE VM: a terminal's settings before and after `guise shell`, for several ends of it; sizes follow."""
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

guise, vm = sys.argv[1:]


def read_until(fd, word, seconds=10):
    text = b""
    end = time.time() + seconds
    while word not in text and time.time() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                text += os.read(fd, 65536)
            except OSError:
                break
    assert word in text, (word, text)
    return text


def settings(fd):
    return termios.tcgetattr(fd)[:4]


def set_size(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def session(end):
    """The session leader keeps the terminal open, as a login shell would."""
    pid, master = pty.fork()
    if pid == 0:
        child = os.fork()
        if child == 0:
            os.execv(guise, ["guise", "shell", "-e", "PS1=$ ", vm])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _, status = os.waitpid(child, 0)
        time.sleep(0.5)
        os.write(1, b"LEADER %d %r\n" % (os.waitstatus_to_exitcode(status), settings(0)))
        time.sleep(10)
        os._exit(0)
    set_size(master, 30, 100)
    before = settings(master)
    os.write(master, b"stty size\n")
    read_until(master, b"30 100")
    assert settings(master) != before, "the terminal is not raw"
    set_size(master, 40, 120)
    time.sleep(0.3)
    os.write(master, b"stty size\r")
    read_until(master, b"40 120")
    os.write(master, b"sleep 50\r")
    time.sleep(0.3)
    os.write(master, b"\x03echo interr''upted $?\r")
    read_until(master, b"interrupted 130")
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        child = int(f.read().split()[0])
    status = end(master, child)
    text = read_until(master, b"LEADER")
    text += read_until(master, b"\n") if not text.endswith(b"\n") else b""
    assert b"LEADER %d " % status in text, text
    assert settings(master) == before, "the terminal is not as before"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(master)


def by_exit(master, child):
    os.write(master, b"exit 7\r")
    return 7


def by_kill(master, child):
    os.kill(child, signal.SIGKILL)
    return -9


def by_hangup(master, child):
    os.kill(child, signal.SIGHUP)
    return 129


def by_escape(master, child):
    os.write(master, b"cat -v\r")
    time.sleep(0.5)
    os.write(master, b"\x1d\x1d\r")
    read_until(master, b"^]\r\n^]\r\n")
    os.write(master, b"\x1d")
    time.sleep(0.1)
    os.write(master, b"q")
    return 0


for how in by_exit, by_kill, by_hangup, by_escape:
    session(how)
