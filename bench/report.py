"""What the benchmarks measured, as people and programs read it.

    report.py table SUITE --peers "A B" --seconds N    out/SUITE.tsv to a table, out/SUITE.txt and out/SUITE.json; status 1
                                                       when something failed or a promise (promises.txt) is not kept
    report.py merge                                    out/*.json of the suites to out/bench.json
    report.py charts DIRECTORY                         SVG charts of out/bench.json
"""
import argparse
import collections
import datetime
import glob
import json
import math
import os
import re
import statistics
import sys

here = os.path.dirname(os.path.abspath(__file__))
out = os.environ.get("BENCH_OUT") or os.path.join(here, "out")
LESS = {"<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b}


def groups():
    """Which group a workload is of: its directory's name."""
    return {os.path.splitext(os.path.basename(p))[0]: os.path.basename(os.path.dirname(p))
            for p in glob.glob(os.path.join(here, "workloads", "*", "*.*"))}


class Results:
    def __init__(self, suite):
        self.values = collections.defaultdict(list)
        self.unit, self.rounds = {}, 0
        self.failures = []  # (who, what): those of guise and of the native run count, for QEMU nobody answers
        checks, group_of = {}, groups() if suite == "run" else {}
        self.group = {}
        with open(os.path.join(out, suite + ".tsv"), encoding="utf-8") as f:
            for line in f:
                turn, peer, name, unit, value, check = line.rstrip("\n").split("\t")
                self.rounds = max(self.rounds, int(turn))
                if name == "failed":
                    self.failures.append((peer, f"round {turn}, {peer}: {value}"))
                    continue
                self.values[name, peer].append(float(value))
                self.unit[name] = unit
                self.group[name] = group_of.get(name, "")
                if check != "-" and checks.setdefault(name, check) != check:
                    self.failures.append(("guise", f"round {turn}, {peer}: {name} gave {check}, others {checks[name]}"))

    def median(self, name, peer):
        """`tcg` is the fastest of all versions and machine types of QEMU.  None when nothing was measured."""
        if peer == "tcg":
            all_of = [m for p in {p for n, p in self.values if n == name and p.startswith("qemu")}
                      if (m := self.median(name, p)) is not None]
            return (max if self.rate(name) else min)(all_of) if all_of else None
        values = self.values.get((name, peer))
        return None if not values else max(values) if name == "memory" else statistics.median(values)

    def spread(self, name, peer):
        """Half of the distance between the lowest and the highest, as a part of the median."""
        values = self.values.get((name, peer))
        return (max(values) - min(values)) / 2 / statistics.median(values) if values and statistics.median(values) else 0.0

    def rate(self, name):
        return "/" in self.unit[name]

    def slower(self, name, a, b):
        """How many times as long as with b the same work takes with a; None when one of them was not measured."""
        x, y = self.median(name, a), self.median(name, b)
        if not x or not y:
            return None
        return y / x if self.rate(name) else x / y

    def names(self, group=None):
        return [n for n in self.unit if group is None or self.group[n] == group]

    def mean(self, names, a, b):
        ratios = [r for n in names if (r := self.slower(n, a, b))]
        return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def show(value, unit):
    if unit == "ns" and value >= 10000:
        value, unit = (value / 1e6, "ms") if value >= 1e6 else (value / 1e3, "us")
    digits = max(0, 3 - len(str(int(value)))) if unit.endswith("/s") else max(0, 4 - len(str(int(value))))
    return f"{value:.{digits}f} {unit}"


def promises(suite, results):
    """Each promise of the suite: what it says, the value, and whether it is kept (None: it was not measured)."""
    kept = []
    with open(os.path.join(here, "promises.txt"), encoding="utf-8") as f:
        rows = [re.split(r"\s{2,}", line.strip()) for line in f if line.strip() and line[0] != "#"]
    for of, what, left, right, relation, limit in (r for r in rows if r[0] == suite):
        names = [n.strip() for n in what.removeprefix("mean of ").split(",")]
        for name in [None] if what.startswith("mean of ") else names:
            if right == "-":
                value = results.median(name, left)
            elif name is None:
                value = results.mean(names, left, right)
            else:
                x, y = results.median(name, left), results.median(name, right)
                value = x / y if x and y else None
            text = f"{name or what}: {left}{'' if right == '-' else '/' + right} {relation} {limit}"
            kept.append({"text": text, "name": name, "value": value,
                         "kept": None if value is None else LESS[relation](value, float(limit))})
    return kept


def cell(x):
    return "-" if x is None else f"{x:.2f}" if x < 100 else f"{x:.0f}"


def table(suite, results, peers, kept):
    native, tcg = "native" in peers, any(p.startswith("qemu") for p in peers)
    ratios = [r for r, wanted in ((("guise", "native"), native), (("tcg", "guise"), tcg), (("uml", "guise"), "uml" in peers)) if wanted]
    by_name = {p["name"]: p for p in kept if p["name"]}
    wide = max([17] + [len(p) + 2 for p in peers])
    width = max([28] + [len(n) + 1 for n in results.unit])
    lines = [" " * width + "".join(f"{p:>{wide}}" for p in peers) + "".join(f"{'/'.join(r).replace('tcg', 'TCG'):>14}" for r in ratios)]

    def row(name):
        line = f"{name:<{width}}"
        for peer in peers:
            m = results.median(name, peer)
            spread = f" {'+-' + format(100 * results.spread(name, peer), '.0f') + '%':>6}" if results.rounds > 1 and m is not None else ""
            line += f"{(show(m, results.unit[name]) if m is not None else '-') + spread:>{wide}}"
        line += "".join(f"{cell(results.slower(name, *r)):>14}" for r in ratios)
        p = by_name.get(name)
        return line + ("" if not p or p["kept"] is None else "  kept" if p["kept"] else "  NOT KEPT")

    for group in dict.fromkeys(results.group.values()):
        lines += ([f"\n{group}"] if group else [""]) + [row(n) for n in results.names(group)]
        if group and len(results.names(group)) > 1:
            lines.append(f"{'geometric mean':<{width}}" + " " * wide * len(peers) +
                         "".join(f"{cell(results.mean(results.names(group), *r)):>14}" for r in ratios))
    lines.append("\nratios say how many times as long the same work takes; TCG is the fastest QEMU" if ratios else "")
    lines += [f"promised {p['text']}; it is {cell(p['value'])}: {'kept' if p['kept'] else 'NOT KEPT' if p['kept'] is False else 'not measured'}"
              for p in kept]
    return lines + ["FAILED " + what for _, what in results.failures]


def host():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "")
    return {"cpu": model, "cpus": os.cpu_count(), "load": os.getloadavg()[0], "kernel": os.uname().release}


def as_json(suite, results, peers, kept, machine, seconds):
    def optional(x):
        return None if x is None else round(x, 4)

    pairs = [("guise", "native"), ("tcg", "guise"), ("uml", "guise")]
    return {
        "suite": suite, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "host": machine,
        "rounds": results.rounds, "seconds": seconds, "peers": peers, "failures": [what for _, what in results.failures], "promises": kept,
        "measurements": {n: {
            "group": results.group[n], "unit": results.unit[n],
            "peers": {p: {"median": results.median(n, p), "spread": round(results.spread(n, p), 4), "values": results.values[n, p]}
                      for p in peers if results.median(n, p) is not None},
            "ratios": {"/".join(r): optional(results.slower(n, *r)) for r in pairs}} for n in results.unit},
        "means": {g: {"/".join(r): optional(results.mean(results.names(g), *r)) for r in pairs}
                  for g in dict.fromkeys(results.group.values()) if g},
    }


def command_table(args):
    peers, machine = args.peers.split(), host()
    results = Results(args.suite)
    kept = promises(args.suite, results)
    head = f"{args.suite}: median of {results.rounds} round(s), {args.seconds} s, {machine['cpu']}, load of the host {machine['load']:.1f}\n"
    text = "\n".join([head] + table(args.suite, results, peers, kept)) + "\n"
    print(text)
    with open(os.path.join(out, args.suite + ".txt"), "w", encoding="utf-8") as f:
        f.write(text)
    with open(os.path.join(out, args.suite + ".json"), "w", encoding="utf-8") as f:
        json.dump(as_json(args.suite, results, peers, kept, machine, args.seconds), f, indent=1)
    return any(who in ("guise", "native") for who, _ in results.failures) or any(p["kept"] is False for p in kept)


def command_merge(_):
    suites = {}
    for path in sorted(glob.glob(os.path.join(out, "*.json"))):
        if os.path.basename(path) != "bench.json":
            with open(path, encoding="utf-8") as f:
                suite = json.load(f)
            suites[suite["suite"]] = suite
    with open(os.path.join(out, "bench.json"), "w", encoding="utf-8") as f:
        json.dump({"suites": suites}, f, indent=1)
    print(f"bench/out/bench.json: {len(suites)} suites, {sum(s['seconds'] for s in suites.values())} s")
    return False


COLOURS = {"guise": "#2166ac", "QEMU": "#b2182b", "User-Mode Linux": "#777777"}
TICKS = [0.5, 1, 2, 5, 10, 20, 50, 100, 200]


def chart(suite, group):
    """A dot for each machine and workload of a group: how many times as long as natively, on a logarithmic scale."""
    rows = []
    for name, m in suite["measurements"].items():
        native = m["peers"].get("native")
        if m["group"] != group or not native:
            continue
        factor = {p: (native["median"] / v["median"] if "/" in m["unit"] else v["median"] / native["median"]) for p, v in m["peers"].items()}
        tcg = [f for p, f in factor.items() if p.startswith("qemu")]
        rows.append((name, {"guise": factor.get("guise"), "QEMU": min(tcg, default=None), "User-Mode Linux": factor.get("uml")}))
    shown = [f for _, dots in rows for f in dots.values() if f]
    if not shown:
        return None
    ticks = [t for t in TICKS if min(0.9, min(shown)) / 2 < t <= max(shown) * 1.5]
    low, high = math.log(min(ticks + shown)), math.log(max(ticks + shown))
    left, width, height = 130, 560, 18

    def x(f):
        return left + (math.log(f) - low) / (high - low) * (width - 20)

    bottom = 44 + height * len(rows)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width}" height="{bottom + 26}" font-family="sans-serif" font-size="12">',
             f'<rect width="100%" height="100%" fill="#ffffff"/><text x="8" y="18" font-weight="bold">{group}: times as long as natively</text>']
    there = [who for who in COLOURS if any(dots[who] for _, dots in rows)]
    for i, who in enumerate(there):
        parts.append(f'<circle cx="{left + 210 + 80 * i}" cy="14" r="5" fill="{COLOURS[who]}"/><text x="{left + 219 + 80 * i}" y="18">{who}</text>')
    for t in ticks:
        parts.append(f'<line x1="{x(t):.0f}" x2="{x(t):.0f}" y1="30" y2="{bottom}" stroke="{"#000000" if t == 1 else "#dddddd"}"/>'
                     f'<text x="{x(t):.0f}" y="{bottom + 16}" text-anchor="middle">{t}</text>')
    for i, (name, dots) in enumerate(rows):
        y = 44 + height * i
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{name}</text>')
        parts += [f'<circle cx="{x(f):.0f}" cy="{y}" r="5" fill="{COLOURS[who]}"/>' for who, f in dots.items() if f]
    return "\n".join(parts + ["</svg>", ""])


def command_charts(args):
    path = os.path.join(out, "bench.json")
    if not os.path.exists(path):
        print("there is no bench/out/bench.json yet: make bench measures", file=sys.stderr)
        return True
    with open(path, encoding="utf-8") as f:
        suite = json.load(f)["suites"].get("run")
    for group in suite["means"] if suite else []:
        drawn = chart(suite, group)
        if drawn:
            name = os.path.join(args.directory, f"speed-{group}.svg")
            with open(name, "w", encoding="utf-8") as f:
                f.write(drawn)
            print(name)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("table")
    sub.add_argument("suite")
    sub.add_argument("--peers", required=True)
    sub.add_argument("--seconds", type=int, default=0)
    sub.set_defaults(run=command_table)
    commands.add_parser("merge").set_defaults(run=command_merge)
    sub = commands.add_parser("charts")
    sub.add_argument("directory")
    sub.set_defaults(run=command_charts)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
