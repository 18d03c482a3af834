#!/usr/bin/env python3
"""The host's servers for tests/guest/net.sh: HTTP, and an echo of UDP datagrams.

    net-host.py DIRECTORY [ADDRESS]

Writes "HTTP-PORT UDP-PORT" to DIRECTORY/servers.  GET /data?N gives N bytes, the same always; POST /data answers how
many bytes came and their sum; GET /ready makes DIRECTORY/ready and answers when DIRECTORY/go is there.
"""
import hashlib
import http.server
import os
import socket
import sys
import threading
import time

directory, address = sys.argv[1], (sys.argv[2:] or ["127.0.0.1"])[0]
block = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(4096))


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/ready":
            open(directory + "/ready", "w").close()
            while not os.path.exists(directory + "/go"):
                time.sleep(0.05)
            self.answer(b"go\n")
            return
        left = int(self.path.partition("?")[2])
        self.send_response(200)
        self.send_header("Content-Length", str(left))
        self.end_headers()
        try:
            while left > 0:
                self.wfile.write(block[:left])
                left -= len(block)
        except OSError:
            pass  # the guest's network is gone: that is a test

    def do_POST(self):
        left, count, digest = int(self.headers["Content-Length"]), 0, hashlib.sha256()
        while left > 0 and (data := self.rfile.read(min(left, 1 << 20))):
            digest.update(data)
            count += len(data)
            left -= len(data)
        self.answer(b"%d %s\n" % (count, digest.hexdigest().encode()))


def echo(udp):
    while True:
        data, peer = udp.recvfrom(65536)
        udp.sendto(data, peer)


udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((address, 0))
threading.Thread(target=echo, args=(udp,), daemon=True).start()
server = http.server.ThreadingHTTPServer((address, 0), Handler)


class Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


try:  # the same port by IPv6, where the host has it
    server6 = Server6(("::1", server.server_address[1]), Handler)
    threading.Thread(target=server6.serve_forever, daemon=True).start()
except OSError:
    pass
with open(directory + "/servers.new", "w") as f:
    f.write("%d %d\n" % (server.server_address[1], udp.getsockname()[1]))
os.rename(directory + "/servers.new", directory + "/servers")
server.serve_forever()
