#!/usr/bin/env python3
"""What the tests of the guest's agent need besides `guise exec`.

agent.py hello SOCKET            waits for the guest's announcement at SOCKET_1024 and prints its fields, one a line
agent.py power SOCKET off|reboot|sync
agent.py identity SOCKET NAME SECONDS
agent.py info SOCKET
"""
import os
import socket
import struct
import sys

ERROR, OK, HELLO, INFO, POWER, IDENTITY = 65, 64, 16, 5, 6, 7
HOSTNAME, SEED, TIME, VERSION, MODE, UPTIME, MESSAGE, ACTION, FACT = 12, 13, 14, 15, 16, 17, 18, 11, 30


def field(tag, value):
    value = struct.pack("<Q", value) if isinstance(value, int) else value
    return struct.pack("<HHI", tag, 0, len(value)) + value


def frame(kind, *fields):
    payload = b"".join(fields)
    return struct.pack("<IB3x", len(payload), kind) + payload


def read_exactly(s, n):
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        assert piece, "the connection has ended"
        data += piece
    return data


def read_frame(s):
    length, kind = struct.unpack("<IB3x", read_exactly(s, 8))
    payload, fields = read_exactly(s, length), []
    while payload:
        tag, size = struct.unpack("<HxxI", payload[:8])
        fields.append((tag, payload[8 : 8 + size]))
        payload = payload[8 + size :]
    return kind, fields


def ask(path, *request):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
    s.sendall(b"CONNECT 1024\n")
    while s.recv(1) != b"\n":
        pass
    s.sendall(frame(*request))
    kind, fields = read_frame(s)
    assert kind == OK, dict(fields).get(MESSAGE)
    return fields


command, path = sys.argv[1:3]
if command == "hello":
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(100)
    listener.bind(path + "_1024")
    listener.listen(1)
    kind, fields = read_frame(listener.accept()[0])
    os.unlink(path + "_1024")
    assert kind == HELLO
    names = {VERSION: "version", MODE: "mode", UPTIME: "uptime_ms", MESSAGE: "message"}
    for tag, value in fields:
        print(names[tag], struct.unpack("<Q", value)[0] if len(value) == 8 and tag != MESSAGE else value.decode())
elif command == "power":
    ask(path, POWER, field(ACTION, {"off": 1, "reboot": 2, "sync": 3}[sys.argv[3]]))
elif command == "identity":
    ask(path, IDENTITY, field(HOSTNAME, sys.argv[3].encode()), field(SEED, os.urandom(32)),
        field(TIME, int(sys.argv[4]) * 10**9))
elif command == "info":
    for tag, value in ask(path, INFO):
        print(value.decode())
