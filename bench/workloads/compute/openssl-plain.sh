# The same without AES, SHA, AVX and SSSE3 instructions
# packages: openssl
prepare() { head -c 16M /dev/zero >data && openssl version; }
work()
{
    export OPENSSL_ia32cap=0x0:0x0
    local i files=()
    for ((i = 0; i < scale; i++)); do
        openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000 -in data -out cipher
        files+=(cipher)
    done
    openssl dgst -sha256 "${files[@]}"
}
