"""The host's side of ports.sh.  Usage: ports-host.py SOCKET; prints ok and not ok lines."""
import hashlib
import socket
import sys
import time

failures = 0


def check(name, condition, why=""):
    global failures
    failures += not condition
    print(f"ok {name}" if condition else f"not ok {name} {why}", flush=True)


def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(sys.argv[1])
    return s, s.makefile("rb")


time.sleep(1)  # the guest's first line waits for us
s, reader = connect()
check("the-guest-waits-for-a-client", reader.readline() == b"from the guest\n")
s.sendall(b"from the host\n")
line = reader.readline()
check("bytes-go-both-ways", line == b"got from the host\n", line)
data = reader.read(8 << 20)
digest = reader.readline().split()
check("8-MiB-from-the-guest", digest and hashlib.sha256(data).hexdigest().encode() == digest[0], digest)
block = bytes(i * 7 & 0xFF for i in range(1 << 20)) * 4
s.sendall(block)
answer = reader.readline().split()
check("4-MiB-to-the-guest", answer and answer[0] == hashlib.sha256(block).hexdigest().encode(), answer)
reader.close()
s.close()
s, reader = connect()
s.sendall(b"again\n")
line = reader.readline()
check("another-client", line == b"got again\n", line)
sys.exit(failures > 0)
