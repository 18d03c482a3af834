# Faults of user programs as signals, 64-bit.
mkdir -p /tmp/faults && cd /tmp/faults && gcc -O1 -o faults /suite/tests/faults.c -lm && ./faults
