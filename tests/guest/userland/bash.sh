# Arithmetic, arrays, pipes, processes and signals of a shell.
declare -A squares
for ((i = 0; i < 2000; i++)); do squares[$i]=$((i * i % 1009)); done
for i in "${!squares[@]}"; do echo "$i ${squares[$i]}"; done | sort -n | sha256sum
text=$(printf 'line %d of many\n' {1..5000})
echo "${#text} ${text:100:20} ${text//line/LINE}" | md5sum
mapfile -t lines <<<"$text"
echo "${#lines[@]} ${lines[4999]}"
diff <(seq 1 100) <(seq 1 2 100) | head -n 5
trap 'echo got USR1' USR1
kill -USR1 $$
(exit 42)
echo "status $?"
pids=() # `jobs -p` would leave out a job that has ended already
for i in 1 2 3 4 5 6 7 8; do (sleep 0.0$i; exit $i) & pids+=($!); done
sum=0
for job in "${pids[@]}"; do wait "$job"; sum=$((sum + $?)); done
echo "jobs $sum"
printf '%.6f %e %x %o %s\n' 3.14159265 12345.678 255 8 'end'
echo $((2 ** 62)) $((-7 / 2)) $((-7 % 3)) $((0x7fffffffffffffff + 1))
[[ "2026-11-21" =~ ^([0-9]+)-([0-9]+) ]] && echo "${BASH_REMATCH[2]}"
{ bash -c 'kill -SEGV $$'; } 2>/dev/null
echo "killed $?"
ulimit -s
count=0
while read -r _; do count=$((count + 1)); done < <(yes | head -n 3000)
echo "read $count"
fibonacci() { (($1 < 2)) && echo "$1" || echo $(($(fibonacci $(($1 - 1))) + $(fibonacci $(($1 - 2))))); }
fibonacci 10
seq 1 20000 | awk '{ s += $1 * $1; t += sqrt($1) } END { printf "%d %.6f\n", s, t }'
seq 1 20000 | sort -R --random-source=<(yes) | sort -n | tail -n 1
head -c 1000000 /dev/zero | tr '\0' 'x' | gzip -9 | gunzip | sha1sum
