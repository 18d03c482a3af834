# vm.tsv to a table: the median of each metric, and how guise compares with QEMU; status 1 when something failed.
function median(peer, metric,    v, n, i, j, t) {
    n = split(values[peer, metric], v, " ")
    for (i = 2; i <= n; i++)
        for (j = i; j > 1 && v[j] + 0 < v[j - 1] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
    return n ? (n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2) : ""
}
$3 == "failed" || $4 == "failed" { print "FAILED: " $0; failed = 1; next }
{
    values[$2, $3] = values[$2, $3] " " $4
    if (!seen[$3]++)
        order[++n] = $3
}
END {
    what["start"] = "command to first output, s"; what["seqwrite"] = "write 1 MiB blocks, s"
    what["seqread"] = "read 1 MiB blocks, s"; what["randread"] = "random 4 KiB reads, 1/s"
    what["randwrite"] = "random 4 KiB writes, 1/s"; what["dpkg"] = "install a package, s"
    what["untar"] = "unpack a tree, s"; what["rmtree"] = "remove the tree, s"
    printf "%-28s %12s %12s %12s\n", "", "guise", "QEMU TCG", "guise/QEMU"
    for (i = 1; i <= n; i++) {
        m = order[i]
        a = median("guise", m); b = median("qemu", m)
        verdict = ""
        if (m == "start" && a != "" && b != "") {
            met = a <= 2.0 && a / b <= 0.5
            verdict = "  at most 2.0 s and 0.5: " (met ? "met" : "MISSED")
            failed = failed || !met
        }
        printf "%-28s %12s %12s %12s%s\n", what[m], a, b, a != "" && b != "" ? sprintf("%.2f", a / b) : "-", verdict
    }
    exit failed
}
