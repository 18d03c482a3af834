# shellcheck shell=bash
# The guest with the workloads: a tree of Debian packages and what is in bench/workloads, and the same as a disk.  Sourced
# after lib.sh; needs no root.

workloads=$GUISE_CACHE/bench

workload_files() { find "$bench/workloads" -mindepth 2 -type f | LC_ALL=C sort; }

workload_header() # FILE FIELD: what the header says, "packages: gcc" of its first lines
{
    sed -n "1,12{s/^[ /*#]*$2: *//;T;s, \*/\$,,;p}" "$1"
}

workload_name() { basename "${1%.*}"; }

# workload_choose WORD,... [ROUND]: the names of workloads, in their order, out of names, groups, `all` and `quick` (those whose
# header says "quick: yes"), with commas between them.  Those with "rounds: N" are only in the first N rounds.
workload_choose()
{
    local words=",$1," file name group most
    while read -r file; do
        most=$(workload_header "$file" rounds)
        [ "${2:-1}" -le "${most:-1000}" ] || continue
        name=$(workload_name "$file") group=$(basename "$(dirname "$file")")
        case $words in
        *,all,* | *",$name,"* | *",$group,"*) echo "$name" ;;
        *,quick,*) [ -z "$(workload_header "$file" quick)" ] || echo "$name" ;;
        esac
    done < <(workload_files) | paste -sd,
}

jdk_fetch() # DIRECTORY: its links into /etc lead into the directory
{
    local link
    packages_extract "$1" bookworm openjdk-17-jdk-headless || return 1
    find "$1/usr/lib/jvm" -type l -lname '/etc/*' | while read -r link; do ln -sfn "$1$(readlink "$link")" "$link"; done
}

# One file of the guest for each workload; prints its line of /bench/list.
workload_install() # FILE
{
    local file=$1 name how=timed to
    name=$(workload_name "$file")
    to=bench/$name.${file##*.}
    case $file in
    *.c)
        how=self to=bench/$name
        # shellcheck disable=SC2046
        compile "$file" "$workloads/tree/$to" -static -s $(workload_header "$file" options) -lm
        ;;
    *.go)
        to=bench/$name
        local go=$GUISE_CACHE/sets/bench-go
        packages_extract "$go" bookworm golang-go && go=$(echo "$go"/usr/lib/go-1.*) &&
            GOROOT=$go GOCACHE=$work/go GO111MODULE=off CGO_ENABLED=0 "$go/bin/go" build -o "$workloads/tree/$to" "$file"
        ;;
    *.java)
        to=bench/$name.jar
        local jdk=$GUISE_CACHE/sets/bench-jdk
        rm -rf "$work/java" && mkdir "$work/java" && jdk_fetch "$jdk" && jdk=$(echo "$jdk"/usr/lib/jvm/java-17-*) &&
            "$jdk/bin/javac" -d "$work/java" "$file" && "$jdk/bin/jar" cf "$workloads/tree/$to" -C "$work/java" .
        ;;
    *) cp "$file" "$workloads/tree/$to" ;;
    esac || { say "$file could not be made ready" && return 1; }
    printf '%s\t%s\t/%s\n' "$name" $how "$to"
}

workloads_image() # makes $workloads/tree and $workloads/disk.img anew when something has changed
{
    local packages file key kept="$workloads/key"
    mkdir -p "$workloads"
    packages=$( (echo bash dash coreutils; for file in $(workload_files); do workload_header "$file" packages; done) | tr ' ' '\n' | sort -u | paste -sd' ')
    key=$(workload_files | xargs sha256sum - "$bench"/{init.c,step,image.sh} "$bench"/workloads/*.h "$top/scripts/guest-image.sh" |
        cat - <(echo "$packages") | sha256sum)
    [ "$(cat "$kept" 2>/dev/null)" != "$key" ] || return 0
    say "making the guest of the workloads"
    rm -f "$kept"
    if [ "$(cat "$workloads/packages" 2>/dev/null)" != "$packages" ]; then
        rm -rf "$workloads/packages" "$workloads/tree"
        # shellcheck disable=SC2086
        "$top/scripts/guest-image.sh" tree "$workloads/tree" $packages >&2 && echo "$packages" >"$workloads/packages" || return 1
    fi
    rm -rf "$workloads/tree/bench" "$workloads/disk.img" && mkdir "$workloads/tree/bench" || return 1
    compile "$bench/init.c" "$workloads/tree/bench/init" -static -s && cp "$bench/step" "$workloads/tree/bench/step" || return 1
    for file in $(workload_files); do workload_install "$file" || return 1; done >"$workloads/list" || return 1
    for file in $(grep -l '^fetch()' $(workload_files)); do (. "$file" && fetch "$workloads/tree/bench") || return 1; done
    mv "$workloads/list" "$workloads/tree/bench/list"
    head -c 128M /dev/urandom >"$workloads/tree/bench/data"
    say "making its disk"
    local mebibytes
    mebibytes=$(($(du -sm "$workloads/tree" | cut -f 1) * 5 / 4 + 100))
    /sbin/mke2fs -q -t ext4 -E root_owner=0:0 -d "$workloads/tree" "$workloads/disk.img" ${mebibytes}M || return 1
    echo "$key" >"$kept"
}
