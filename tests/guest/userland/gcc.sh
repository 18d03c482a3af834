# Compiles, assembles, links and runs: the code must come out the same, and the programs behave the same.
mkdir -p /tmp/gcc && cd /tmp/gcc || exit 1
cp /suite/tests/program.c . || exit 1
for level in 0 1 2 3 s; do
    gcc -O$level -S -o program.s program.c && sha256sum <program.s
    gcc -O$level -o program program.c -lm -lpthread && ./program 2>&1
done
gcc -O2 -static -o static program.c -lm -lpthread && ./static
gcc -shared -fPIC -O2 -x c -o library.so - <<<'int answer(void) { return 42; }' &&
    gcc -x c -o user - -x none ./library.so <<<'int answer(void); int main(void) { return answer(); }' && ./user
echo "library $?"
gcc -x c -c -o /dev/null - <<<'int main(void) { return undeclared; }' 2>&1 | head -n 4
as --version | head -n 1
objdump -d library.so | grep -A 3 '<answer>:' | tail -n 2
