# xz at level 2, both ways
# packages: xz-utils perl findutils
prepare()
{
    find /usr/share/perl -type f | sort | xargs cat >text
    while cat text; do :; done 2>/dev/null | head -c $((scale * 800))K >data
}
work()
{
    xz -2 -T1 -k data
    xz -dc data.xz | cksum
}
