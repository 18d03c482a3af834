# zstd at level 3, both ways, of the text and code of Debian's perl, again and again
# packages: zstd perl findutils
# quick: yes
prepare() { find /usr/share/perl /usr/lib/x86_64-linux-gnu/perl-base -type f | sort | xargs cat | head -c 12M >data; }
work()
{
    local i files=()
    for ((i = 0; i < scale; i++)); do files+=(data); done
    zstd -q -3 --single-thread -c "${files[@]}" >packed
    zstd -q -d -c packed | cksum
}
