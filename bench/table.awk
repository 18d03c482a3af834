# results.tsv to the table: one row a metric, a column a peer, then the ratios that are promised.
# The fastest TCG of all versions and machine types is the one guise is held against.

function sorted_values(peer, metric, v,    n, i, j, t, parts) {
    n = split(values[peer, metric], parts, " ")
    for (i = 1; i <= n; i++) {
        t = parts[i] + 0
        for (j = i - 1; j >= 1 && v[j] > t; j--)
            v[j + 1] = v[j]
        v[j + 1] = t
    }
    return n
}

function figure(peer, metric,    v, n) {
    n = sorted_values(peer, metric, v)
    if (!n)
        return ""
    if (metric == "memory")
        return v[n]
    if (stat == "min")
        return v[1]
    return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}

function best_tcg(metric,    i, f, best) {
    best = ""
    for (i = 1; i <= peers; i++)
        if (peer[i] !~ /^(native|guise)$/ && (f = figure(peer[i], metric)) != "" && (best == "" || f < best)) {
            best = f
            best_peer = peer[i]
        }
    return best
}

function show(value, metric) {
    if (value == "")
        return "-"
    if (metric == "memory")
        return sprintf("%.1f MB", value / 1024)
    if (metric ~ /^(boot|uptime)$/)
        return sprintf("%.3f s", value)
    if (kind[metric] == "program")
        return sprintf("%.4f s", value)
    return value >= 100000 ? sprintf("%.0f us", value / 1000) : sprintf("%.0f ns", value)
}

function ratio(a, b) { return a == "" || b == "" || b == 0 ? "" : a / b }

function cell(x) { return x == "" ? "-" : sprintf("%.2f", x) }

function verdict(x, limit,    met) {
    if (x == "")
        return ""
    met = x <= limit
    return sprintf("%s %.2f %s", "<=", limit, met ? "met" : "MISSED")
}

function row(metric, limit,    i, native, guise, tcg, line) {
    line = sprintf("%-10s", metric)
    for (i = 1; i <= peers; i++)
        line = line sprintf(" %*s", width[i], show(figure(peer[i], metric), metric))
    native = figure("native", metric)
    guise = figure("guise", metric)
    tcg = best_tcg(metric)
    line = line sprintf(" %8s %8s %8s  %s", cell(ratio(guise, native)), cell(ratio(tcg, native)), cell(ratio(guise, tcg)),
        limit ? verdict(ratio(guise, tcg), limit) : "")
    print line
    if (kind[metric] == "program") {
        if (guise != "" && native != "") { guise_log += log(guise / native); guise_n++ }
        if (tcg != "" && native != "") { tcg_log += log(tcg / native); tcg_n++ }
        if (guise != "" && tcg != "") { both_log += log(guise / tcg); both_n++ }
    }
}

function mean(sum, n) { return n ? exp(sum / n) : "" }

BEGIN {
    FS = "\t"
    programs = split("sha256 hash interp sort matrix fib", program, " ")
    systems = split("forkexec getppid pipe fault", system_call, " ")
    for (i in program)
        kind[program[i]] = "program"
}

{
    if (!($2 in seen)) {
        seen[$2] = 1
        peer[++peers] = $2
        width[peers] = length($2) > 11 ? length($2) : 11
    }
    if ($3 == "failed") {
        failures += $2 ~ /^(native|guise)$/
        print "FAILED: round " $1 " " $2 ", status " $4
        next
    }
    values[$2, $3] = values[$2, $3] " " $4
    rounds = $1 > rounds ? $1 : rounds
    if ($5 != "-") {
        if ($3 in checksum && checksum[$3] != $5) {
            failures++
            print "WRONG RESULT: " $2 " " $3 ": " $5 ", others " checksum[$3]
        } else {
            checksum[$3] = $5
        }
    }
}

END {
    printf "%s of %d round(s), kernel %s, 1 vCPU, load of the host %s\n\n%-10s", stat, rounds, kernel, load, ""
    for (i = 1; i <= peers; i++)
        printf " %*s", width[i], peer[i]
    printf " %8s %8s %8s  %s\n", "guise/", "TCG/", "guise/", "promised"
    printf "%-10s", ""
    for (i = 1; i <= peers; i++)
        printf " %*s", width[i], ""
    printf " %8s %8s %8s  %s\n", "native", "native", "TCG", "(guise/TCG)"
    for (m = 1; m <= programs; m++)
        row(program[m], 1)
    printf "%-10s", "geo. mean"
    for (i = 1; i <= peers; i++)
        printf " %*s", width[i], ""
    printf " %8s %8s %8s  %s\n", cell(mean(guise_log, guise_n)), cell(mean(tcg_log, tcg_n)), cell(mean(both_log, both_n)),
        guise_n ? "guise/native " verdict(mean(guise_log, guise_n), 2.4) : ""
    for (m = 1; m <= systems; m++)
        row(system_call[m], 0.6)
    row("boot", 0.7)
    if (best_tcg("boot") != "")
        print "           (fastest TCG to init: " best_peer ")"
    row("uptime", 0)
    row("memory", 0)
    if (figure("guise", "memory") != "")
        printf "           guise beyond guest RAM: %s of the 100 MB promised, %s\n", show(figure("guise", "memory"), "memory"),
            figure("guise", "memory") <= 102400 ? "met" : "MISSED"
    exit failures > 0
}
