"""Summarizes a CSV table and plots a column: JSON on stdin, JSON on stdout."""

import collections
import csv
import html
import io
import json
import statistics
import sys


def number(text):
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value - value == 0 else None  # no nan, no infinity


def summary(values):
    present = [v for v in values if v.strip()]
    out = {"missing": len(values) - len(present)}
    numbers = [number(v) for v in present]
    if present and None not in numbers:
        return out | {
            "kind": "number", "min": min(numbers), "max": max(numbers),
            "mean": statistics.fmean(numbers), "median": statistics.median(numbers),
        }
    count = collections.Counter(present)
    return out | {"kind": "text", "distinct": len(count), "top": count.most_common(3)}


def plot_png(name, points):
    """Draws with matplotlib. False: it is not there."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    pyplot.figure(figsize=(6.4, 3.6))
    pyplot.plot([x for x, _ in points], [y for _, y in points], marker=".")
    pyplot.title(name)
    pyplot.savefig("/tmp/plot.png", dpi=100)
    return True


def plot_svg(name, points, width=640, height=360, margin=40):
    low, high = min(y for _, y in points), max(y for _, y in points)
    last = max(x for x, _ in points) or 1
    across = lambda x: margin + x / last * (width - 2 * margin)
    up = lambda y: height - margin - (y - low) / ((high - low) or 1) * (height - 2 * margin)
    line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    with open("/tmp/plot.svg", "w", encoding="utf-8") as f:
        f.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
            f'<rect width="100%" height="100%" fill="white"/>'
            f'<text x="{width / 2}" y="20" text-anchor="middle">{html.escape(name)}</text>'
            f'<text x="4" y="{up(high):.1f}">{high:g}</text><text x="4" y="{up(low):.1f}">{low:g}</text>'
            f'<polyline fill="none" stroke="steelblue" stroke-width="1.5" points="{line}"/></svg>'
        )


def main():
    given = json.load(sys.stdin)
    rows = list(csv.reader(io.StringIO(given["csv"])))
    if not rows:
        sys.exit("the table has no header")
    header, rows = rows[0], [r for r in rows[1:] if r]
    table = {name: [r[i] if i < len(r) else "" for r in rows] for i, name in enumerate(header)}
    columns = {name: summary(values) for name, values in table.items()}
    print(json.dumps({"progress": 1, "total": 2, "message": "plotting"}), file=sys.stderr, flush=True)
    wanted = given.get("plot")
    numeric = [name for name, c in columns.items() if c["kind"] == "number"]
    if wanted is None and numeric:
        wanted = numeric[0]
    if wanted is not None:
        if wanted not in numeric:
            sys.exit(f"there is no numeric column {wanted!r}")
        points = [(i, number(v)) for i, v in enumerate(table[wanted]) if v.strip()]
        plot_png(wanted, points) or plot_svg(wanted, points)
    json.dump({"rows": len(rows), "columns": columns, "plot": wanted}, sys.stdout)


main()
