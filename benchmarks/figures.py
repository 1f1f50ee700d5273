"""The pictures of the records of `python -m benchmarks`. Each function returns a figure."""
from math import prod

import numpy as np

from advprune.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, figure, style

ALTERNATIVES = {  # of an operator: name and colour
    "eager": ("PyTorch, eager", BLUE), "compile": ("torch.compile", ORANGE),
    "topk": ("torch.topk", GREEN), "sort": ("torch.sort", GREY),
    "argpartition": ("numpy.argpartition", PURPLE)}


@style
def kernels(record):
    """How many times as long the alternatives of each operator take: medians, and 80 % of rounds.

    record is that of `python -m benchmarks kernels`; of each operator its largest input is drawn.
    """
    largest = {}
    for row in record["rows"]:
        first = largest.setdefault(row["operator"], row)
        if row["layout"] == first["layout"] and prod(row["shape"]) >= prod(first["shape"]):
            largest[row["operator"]] = row
    drawn = figure(6)
    axes, line, places = drawn.subplots(), 0, []
    for row in largest.values():
        first = line
        for name, other in row["others"].items():
            label, color = ALTERNATIVES[name]
            axes.barh(line, other["times"] - 1, 0.9, left=1, color=color, label=label, xerr=[
                [other["times"] - other["low"]], [other["high"] - other["times"]]], ecolor=BLACK)
            line += 1
        places.append((first + line - 1) / 2)
        line += 0.6
    axes.set_yticks(places, [f"{name}\n{'x'.join(map(str, row['shape']))}"
                             for name, row in largest.items()], fontsize="small")
    axes.axvline(1, color=BLACK, lw=1)
    axes.set(xlabel="time of the alternative / time of the kernel (above 1 the kernel is faster)",
             xscale="log", title=f"How long the alternatives take beside the kernels "
             f"({record['device']}, {record['threads']} threads)")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:g}")
    legend = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    drawn.legend(legend.values(), legend, loc="outside lower center", ncols=5)
    return drawn


@style
def scale(record):
    """Kaufmann et al. 2022, Figure 5: seconds against examples seen; and peak memory.

    record is that of `python -m benchmarks scale`.
    """
    drawn, runs, memory = figure(3.6), record["rows"], record["memory"]
    left, right = drawn.subplots(1, 2)
    x = np.array([row["examples"] for row in runs])
    ends = np.array([0, x.max()])
    left.plot(ends, record["intercept"] + record["slope"] * ends, color=GREY, lw=1.5,
              label=f"{record['intercept']:.2f} s + {1000 * record['slope']:.3f} s per 1,000")
    left.plot(x, [row["seconds"] for row in runs], "o", color=BLUE, label="training")
    left.plot(x, [row["prune_seconds"] + row["guard_seconds"] for row in runs], "s", ms=4,
              color=ORANGE, label="scoring and guard")
    for row in runs:
        left.annotate(f"p = {row['p']:g}", (row["examples"], row["seconds"]), fontsize=8,
                      xytext=(-6, 4), textcoords="offset points", ha="right")
    left.set(xlabel="training examples seen", ylabel="seconds", xlim=(0, None), ylim=(0, None),
             title=f"Time of training: {record['dataset']}, {record['epochs']} epochs")
    left.legend(loc="upper left")
    for axes in (left, right):
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    n = [row["examples"] for row in memory]
    right.plot(n, [row["peak"] for row in memory], "o-", color=BLUE, label="peak of the process")
    right.plot(n, [row["before"] for row in memory], "s--", ms=4, color=GREY,
               label="before it reads data")
    right.plot(n, [row["data"] for row in memory], "^-", ms=4, color=ORANGE, label="the data set")
    right.set(xlabel="training examples", ylabel="MiB", xlim=(0, None), ylim=(0, None),
              title="Memory")
    right.legend()
    return drawn
