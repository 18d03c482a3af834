# The C library's memory and string functions.
mkdir -p /tmp/memory && cd /tmp/memory && gcc -O1 -fno-builtin -o memory /suite/tests/memory.c && ./memory
