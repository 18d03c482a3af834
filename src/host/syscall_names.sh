#!/bin/sh
# The names of this machine's system calls, as the entries of a C array.  Arguments: the C compiler.
set -e
echo '#include <sys/syscall.h>' | "$@" -E -dM -x c - |
    sed -n 's/^#define __NR_\([a-z0-9_]*\) \([0-9]*\)$/[\2] = "\1",/p' | sort -t '[' -k 2n
