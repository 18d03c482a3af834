# A kernel: make tinyconfig, what it prepares, and the objects of lib/math; tools and files by the hundred
# packages: make gcc libc6-dev bc flex bison perl findutils grep sed mawk diffutils
# rounds: 1
fetch() # DIRECTORY: Debian's source, as much as these need
{
    local source=$GUISE_CACHE/linux-source-6.1
    package_one "$source" bookworm linux-source-6.1 || return 1
    mkdir "$1/linux"
    tar -C "$1/linux" --strip-components=1 --wildcards --exclude='*/testing/*' --exclude='*/amd/include/*' \
        -xf "$source"/usr/src/linux-source-6.1.tar.xz '*/Kconfig*' '*/Makefile*' '*/Kbuild*' \
        linux-source-6.1/{scripts,include,arch/x86,kernel,lib}'/*' linux-source-6.1/tools/{include,objtool,build,lib,scripts,arch/x86}'/*'
}
work()
{
    make -s -C /bench/linux O=/tmp/work/kernel tinyconfig
    make -s -C /bench/linux O=/tmp/work/kernel lib/math/
    find kernel/lib/math -name '*.o' | wc -l
}
