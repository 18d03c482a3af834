# The interpreter and C extensions: big integers, text, digests, threads, processes, sockets, memory maps.
python3 - <<'EOF'
import array, ctypes, decimal, fractions, hashlib, itertools, json, math, mmap, os, random, re, signal, socket
import struct, subprocess, sys, threading, time, zlib
sys.set_int_max_str_digits(0)
print(sys.version_info[:2], sys.maxsize, struct.calcsize("P"))
print(hashlib.sha256(str(3 ** 20000).encode()).hexdigest())
print(pow(3, 10 ** 40 + 7, 2 ** 127 - 1), math.factorial(300) % (10 ** 9 + 7), math.isqrt(10 ** 60 + 12345))
for f in (math.sin, math.exp, math.log, math.tan, math.sqrt, math.atan, math.lgamma, math.erf):
    print(f.__name__, *("%.12g" % f(x / 7) for x in (1, 5, 23, 77)))
print(1e308 * 10, -1e308 * 10, 5e-324 / 2, 0.1 + 0.2, float("nan"), round(2.5), 7.0 // -2, -7 % 3.5)
for a, b in ((1.0, 0.0), (1, 0)):
    try:
        print(a / b)
    except ZeroDivisionError as e:
        print(type(e).__name__, e)
print(decimal.Decimal(2).sqrt(), fractions.Fraction(355, 113) + fractions.Fraction(1, 7))
random.seed(7)
data = [random.random() for _ in range(20000)]
print("%.12f" % sum(sorted(data)), hashlib.md5(array.array("d", data).tobytes()).hexdigest())
text = json.dumps({str(i): list(range(i % 20)) for i in range(500)}, sort_keys=True)
print(len(text), zlib.crc32(text.encode()), zlib.adler32(zlib.decompress(zlib.compress(text.encode(), 9))))
print(json.loads(text) == {str(i): list(range(i % 20)) for i in range(500)})
print(re.sub(r"(\w+)@(\w+)\.com", r"\2 at \1", "joe@example.com, ann@test.com"), re.findall(r"(?<=a)b+", "abbb cab ab"))
for name in sorted(hashlib.algorithms_guaranteed):
    h = hashlib.new(name, text.encode())
    print(name, h.hexdigest(16) if "shake" in name else h.hexdigest())
total, lock = [0], threading.Lock()
def add():
    for i in range(2000):
        with lock:
            total[0] += i
threads = [threading.Thread(target=add) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print("threads", total[0])
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen()
def serve():
    c, _ = server.accept()
    while chunk := c.recv(65536):
        c.sendall(chunk.upper())
    c.close()
threading.Thread(target=serve, daemon=True).start()
client = socket.create_connection(server.getsockname())
sent, got = b"hello guest " * 3000, b""
client.sendall(sent)
client.shutdown(socket.SHUT_WR)
while chunk := client.recv(65536):
    got += chunk
print("socket", got == sent.upper(), hashlib.sha1(got).hexdigest())
print("child", subprocess.run(["sh", "-c", "echo out; exit 3"], capture_output=True))
pids = [os.fork() or os._exit(i) for i in range(10)]
print("forks", sum(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids))
m = mmap.mmap(-1, 1 << 20)
for i in range(0, 1 << 20, 4096):
    m[i:i + 8] = struct.pack("<Q", i * i)
print("mmap", zlib.crc32(m))
signal.signal(signal.SIGALRM, lambda *a: print("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(0.2)
libc = ctypes.CDLL(None)
libc.strtod.restype = ctypes.c_double
print("ctypes", libc.abs(-5), libc.strtod(b"2.5e3", None))
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))(lambda a, b: a[0] - b[0])
numbers = (ctypes.c_int * 6)(5, 3, 9, 1, 7, 2)
libc.qsort(numbers, 6, 4, compare)
print(list(numbers), sum(1 for _ in itertools.permutations(range(7))))
def deep(n):
    return 0 if n == 0 else 1 + deep(n - 1)
try:
    deep(10 ** 6)
except RecursionError:
    print("recursion")
print(subprocess.run([sys.executable, "-c", "import ctypes; ctypes.string_at(0)"], stderr=subprocess.DEVNULL).returncode)
EOF
