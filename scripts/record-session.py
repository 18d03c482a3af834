#!/usr/bin/env python3
"""Records a terminal session as a picture.

  scripts/record-session.py OUT.svg [--shown TEXT] TYPED... -- COMMAND...

Runs COMMAND in a pseudo-terminal, types one TYPED line at each prompt ("# " at the end of what was printed), and
draws what the screen showed; TEXT stands for COMMAND in the picture.  docs/session.svg is
  scripts/record-session.py docs/session.svg 'uname -a' 'grep -m1 "model name" /proc/cpuinfo' exit -- make run
"""
import fcntl
import html
import os
import pty
import re
import select
import struct
import sys
import termios
import time

LIMIT_SECONDS = 120
COLUMNS = 110


def run(typed, command):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execvp(command[0], command)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, COLUMNS, 0, 0))
    text = b""
    end = time.time() + LIMIT_SECONDS
    typed = list(typed)
    seen = 0
    while time.time() < end:
        ready, _, _ = select.select([fd], [], [], 0.3)
        if ready:
            try:
                data = os.read(fd, 65536)
            except OSError:
                break
            if not data:
                break
            text += data
        elif typed and len(text) > seen and re.search(rb"# (\x1b\[6n)?$", text):
            seen = len(text)
            os.write(fd, typed.pop(0).encode() + b"\r")
    os.close(fd)
    _, status = os.waitpid(pid, 0)
    return text.decode(errors="replace"), os.waitstatus_to_exitcode(status)


def lines_of(text):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
    for line in text.rstrip("\n").split("\n"):
        while len(line) > COLUMNS:
            yield line[:COLUMNS]
            line = line[COLUMNS:]
        yield line


def picture(title, lines):
    width = int(COLUMNS * 7.8) + 40
    height = len(lines) * 18 + 60
    rows = "\n".join(
        f'<text x="20" y="{56 + i * 18}" xml:space="preserve">{html.escape(line)}</text>' for i, line in enumerate(lines))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<rect width="100%" height="100%" rx="8" fill="#1d2128"/>
<circle cx="22" cy="18" r="5" fill="#e06c60"/><circle cx="40" cy="18" r="5" fill="#e0b860"/><circle cx="58" cy="18" r="5" fill="#7cb86a"/>
<g font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="13" fill="#d7dae0">
<text x="{width // 2}" y="22" text-anchor="middle" fill="#8b93a1">{html.escape(title)}</text>
{rows}
</g>
</svg>
"""


def main():
    if "--" not in sys.argv or len(sys.argv) < 4:
        sys.exit(__doc__)
    cut = sys.argv.index("--")
    command = sys.argv[cut + 1:]
    typed = sys.argv[2:cut]
    shown = " ".join(command)
    if typed[:1] == ["--shown"]:
        shown = typed[1]
        typed = typed[2:]
    text, status = run(typed, command)
    lines = ["$ " + shown] + list(lines_of(text))
    with open(sys.argv[1], "w") as out:
        out.write(picture("guise", lines))
    print("\n".join(lines))
    sys.exit(status)


main()
