"""The pictures of the records of `python -m benchmarks`. Each function returns a figure."""
import numpy as np

from advprune.plots import BLUE, GREY, ORANGE, RED, figure, style


@style
def kernels(record):
    """How many times as long an alternative of each operator takes, at its least and largest size.

    record is that of `python -m benchmarks kernels`.
    """
    rows = []
    for name, says, others in (
            ("rs_start + fgsm_step", "RS+FGSM start and step", ("eager",)),
            ("augment", "crop and flip", ("eager", "reference")),
            ("select_kept", "selection", ("topk",))):
        mine = sorted((row["n"], other, row[other]) for row in record["rows"]
                       for other in others if row["operator"] == name and other in row)
        rows += [(f"{says}, {n:,} elements\nagainst "
                  + ("torch.topk" if other == "topk" else "plain torch"), ratio)
                 for n, other, ratio in (mine if len(mine) < 2 else (mine[0], mine[-1]))]
    drawn = figure(0.55 * len(rows) + 1)
    axes = drawn.subplots()
    bars = axes.barh(range(len(rows)), [ratio for _, ratio in rows], 0.6, color=BLUE)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(1, color=RED, lw=1.5)
    axes.text(1, -0.6, " 1: as fast as the kernel", color=RED, va="bottom")
    axes.set(xlabel="time of the alternative / time of the kernel",
             title=f"{record['device']}, {record['threads']} threads\n")
    axes.invert_yaxis()
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
             title=f"{record['dataset']}, {record['epochs']} epochs")
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
              title="memory")
    right.legend()
    return drawn
