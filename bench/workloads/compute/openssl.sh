# AES-128-CTR and SHA-256 by openssl, with all the instructions for them that the CPU has
# packages: openssl
# quick: yes
prepare() { head -c 96M /dev/zero >data && openssl version; }
work()
{
    local i files=()
    for ((i = 0; i < scale; i++)); do
        openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000 -in data -out cipher
        files+=(cipher)
    done
    openssl dgst -sha256 "${files[@]}"
}
