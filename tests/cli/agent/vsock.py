#!/usr/bin/env python3
"""A virtual machine's vsock socket with nothing behind it but the agent, as an ordinary process.

vsock.py SOCKET AGENT: listens at SOCKET; a client's "CONNECT 1024\\n" leads to `AGENT --agent-fd N`.
"""
import os
import socket
import subprocess
import sys

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
while True:
    client, _ = listener.accept()
    line = b""
    while not line.endswith(b"\n") and (byte := client.recv(1)):
        line += byte
    if line == b"CONNECT 1024\n":
        client.sendall(b"OK 1\n")
        subprocess.Popen([sys.argv[2], "--agent-fd", str(client.fileno())], pass_fds=[client.fileno()])
    client.close()
