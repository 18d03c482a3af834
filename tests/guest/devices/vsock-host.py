"""The host's side of vsock.sh: prints ok and not ok lines.  Usage: vsock-host.py SOCKET"""
import os
import socket
import sys
import threading
import time

PATH = sys.argv[1]
PATTERN = bytes((i * 31 + i // 255) & 0xFF for i in range(255 * 256))
failures = 0


def pattern(n):
    return (PATTERN * (n // len(PATTERN) + 1))[:n]


def check(name, condition, why=""):
    global failures
    failures += not condition
    print(f"ok {name}" if condition else f"not ok {name} {why}", flush=True)


def connect(port, words=""):
    """A connection to the guest's port, its OK line taken off; None: refused."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(PATH)
    s.sendall(f"CONNECT {port}\n".encode() + words.encode())
    line = b""
    while not line.endswith(b"\n"):
        byte = s.recv(1)
        if not byte:
            return None
        line += byte
    assert line.startswith(b"OK "), line
    return s


def read_all(s):
    parts = []
    while part := s.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def echo(text):
    s = connect(1024, "echo\n")
    s.sendall(text)
    s.shutdown(socket.SHUT_WR)
    return read_all(s)


listener = socket.socket(socket.AF_UNIX)
listener.bind(PATH + "_70")
listener.listen(64)
listener.settimeout(60)
ready, _ = listener.accept()
check("the-guest-connects-to-the-host", read_all(ready) == b"ready\n")

check("a-port-without-a-listener-is-refused", connect(1025) is None)
check("echo", echo(b"hello") == b"hello")

N = 32 << 20
start = time.monotonic()
s = connect(1024, f"source {N}\n")
check("32-MiB-to-the-host", read_all(s) == pattern(N))
print(f"{N / (1 << 20) / (time.monotonic() - start):.0f} MiB/s to the host")
start = time.monotonic()
s = connect(1024, "sink\n")
s.sendall(pattern(N))
s.shutdown(socket.SHUT_WR)
answer = read_all(s).split()
check("32-MiB-to-the-guest-and-an-answer-after-the-end", answer == [str(N).encode(), b"0"], answer)
print(f"{N / (1 << 20) / (time.monotonic() - start):.0f} MiB/s to the guest")

slow = connect(1024, f"source {N}\n")
check("a-slow-reader-holds-up-nobody-else", echo(b"quick" * 1000) == b"quick" * 1000)
time.sleep(0.2)
got = read_all(slow)
check("a-slow-reader-gets-all", got == pattern(N), len(got))

results = []
threads = [threading.Thread(target=lambda i=i: results.append(echo(pattern(1000 * i)) == pattern(1000 * i))) for i in range(40)]
for t in threads:
    t.start()
for t in threads:
    t.join()
check("40-connections-at-once", results == [True] * 40)

other = socket.socket(socket.AF_UNIX)
other.bind(PATH + "_71")
other.listen(1)
s = connect(1024, "dial 71\n")
peer, _ = other.accept()
peer.sendall(b"from the host")
peer.close()
check("the-guest-reads-from-the-host", read_all(s) == b"from the host")
check("the-guest-is-refused", read_all(connect(1024, "dial 72\n")) == b"refused\n")

for i in range(20):  # gone in the middle of it
    s = connect(1024, f"source {N}\n")
    s.recv(100)
    s.close()
    connect(1024).close()
check("clients-that-leave-do-no-harm", echo(b"x") == b"x")

connect(1024, "quit\n")
os.unlink(PATH + "_70")
os.unlink(PATH + "_71")
sys.exit(failures > 0)
