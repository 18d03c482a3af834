# A tree of 1,500 files out of an archive, in memory, and away with it
# packages: tar findutils
prepare()
{
    mkdir tree
    for d in $(seq 30); do
        mkdir tree/d$d
        for f in $(seq 50); do echo "file $f of directory $d" >tree/d$d/f$f; done
    done
    tar -cf tree.tar tree
    rm -rf tree
}
work()
{
    tar -xf tree.tar
    find tree -type f | wc -l
    rm -rf tree
}
