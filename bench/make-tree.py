"""make-tree.py FILES OUT: a tar archive shaped like a kernel's source, 16 files a directory, most of them small; the
same bytes each time."""
import io
import random
import sys
import tarfile

files, out = int(sys.argv[1]), sys.argv[2]
r = random.Random(1)
text = bytes(r.choice(b"abcdefghijklmnopqrstuvwxyz     \n;(){}") for _ in range(1 << 20))
with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
    directory = "linux"
    for i in range(files):
        if i % 16 == 0:
            directory = f"linux/d{i // 1600}/e{i // 16}"
            info = tarfile.TarInfo(directory)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        size = min(int(r.lognormvariate(8.6, 1.1)), 400000)
        start = r.randrange(len(text) - size)
        info = tarfile.TarInfo(f"{directory}/file{i}.c")
        info.size = size
        tar.addfile(info, io.BytesIO(text[start:start + size]))
