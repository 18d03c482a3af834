# A shell script of small tools, as configure scripts are
# packages: bash coreutils grep sed mawk
prepare() { ls / >/dev/null; }
work()
{
    local i
    for i in $(seq 40); do
        expr "$i" \* 3 >n
        sed "s/\$/ of $i/" n | grep -c of >>log
        [ "$(basename /usr/lib/x$i.so .so)" = "x$i" ] && cat n >>log
        case $(uname -s) in Linux) echo "$i linux" ;; esac >>log
    done
    awk '{ s += $1 } END { print s }' log
}
