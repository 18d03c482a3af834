# zstd at level 3, both ways, of the text and code of Debian's perl
# packages: zstd perl findutils
# quick: yes
prepare() { find /usr/share/perl /usr/lib/x86_64-linux-gnu/perl-base -type f | sort | xargs cat | head -c $((scale * 12))M >data; }
work()
{
    zstd -q -3 --single-thread data -o packed
    zstd -q -d packed -o back
    cksum <back
}
