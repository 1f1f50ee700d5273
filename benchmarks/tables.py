"""The records of `python -m benchmarks` in Markdown, for the terminal and for docs/."""
from benchmarks import kernels as speed


def as_table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` are right-aligned."""
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def machine_of(record: dict) -> str:
    return (f"{record['device']}, {record['threads']} threads, {record['cpu']}, torch "
            f"{record['versions']['torch']}")


def _network(record: dict) -> str:
    width = f" of width {record['width']}" if record["width"] else ""
    return (f"{record['dataset']}, {record['model']}{width}, {record['precision']}, batches of "
            f"{record['batch_size']}, {record['examples']:,} examples")


def ablation(record: dict) -> str:
    """What the kernels are worth in whole epochs."""
    rows = [[row["variant"], f"{row['training']:,.0f}", f"{row['training_ratio']:.2f}",
             f"{row['scoring']:,.0f}", f"{row['scoring_ratio']:.2f}"] for row in record["rows"]]
    return as_table(["", "training, images/s", "ratio", "scoring, images/s", "ratio"], rows) + (
        f"\n{_network(record)}. Medians of {record['rounds']} rounds in turn; "
        f"{machine_of(record)}")


def kernels(record: dict) -> str:
    """Each operator beside a copy and its alternatives."""
    rows = [speed.words(row) for row in record["rows"]]
    return as_table(speed.HEAD, rows, left=4) + (
        f"\nMedians of at most {speed.ROUNDS} rounds in turn, in one process on a shared machine; "
        f"{machine_of(record)}")


def training(record: dict) -> str:
    """Where an epoch's time goes."""
    whole = record["epoch_seconds"]
    parts = [*record["rows"], {"part": "epoch", "seconds": whole,
                               "floor": record["floor_seconds"]}]
    rows = [[row["part"], f"{row['seconds']:.3f}", f"{row['seconds'] / whole:.1%}",
             f"{row['floor']:.3f}",
             f"{row['floor'] / row['seconds']:.2f}" if row["floor"] else ""] for row in parts]
    low, high = record["share_of_floor_range"]
    text = (
        "\n{0}: {images_per_second:,.0f} images/s, which is {times_reference:.2f} times the "
        "{reference_images_per_second:,.0f} of fast_adversarial's loop. The floor is "
        "{share_of_floor:.2f} of the epoch ({low:.2f} to {high:.2f} in single rounds); its "
        "network is {network}, its optimiser {optimiser}. Medians of {rounds} rounds in turn; ")
    head = ["part of an epoch", "seconds", "of the epoch", "floor", "floor / part"]
    return (as_table(head, rows)
            + text.format(_network(record), low=low, high=high, **record, **record["fastest"])
            + machine_of(record))


def scale(record: dict) -> str:
    """Seconds against examples seen, and memory against the number of examples."""
    rows = [[f"{row['p']:.0%}", f"{row['examples']:,}", f"{row['seconds']:.2f}",
             f"{row['deviation']:+.1%}", f"{row['prune_seconds']:.2f}",
             f"{row['guard_seconds']:.2f}"] for row in record["rows"]]
    sizes = [[f"{row['examples']:,}", f"{row['data']:.1f}", f"{row['before']:.0f}",
              f"{row['peak']:.0f}"] for row in record["memory"]]
    return (
        as_table(["dropped", "examples seen", "training, s", "off proportional", "scoring, s",
                  "guard, s"], rows)
        + "\nSeconds are medians over epochs. Least squares: "
        f"{record['intercept']:.2f} s + {1000 * record['slope']:.3f} s for each 1,000 examples."
        "\n\n"
        + as_table(["examples", "data, MiB", "before the data, MiB", "peak, MiB"], sizes)
        + f"\n{_network(record)}, {record['epochs']} epochs, pruned by high loss after epoch "
        f"{record['prune_epoch']}; {machine_of(record)}")


def layouts(record: dict) -> str:
    """Images/s of each network in the first way, and the other ways as ratios to it."""
    networks: dict[tuple, dict] = {}
    for row in record["rows"]:
        width = f" {row['width']}" if row["width"] else ""
        of = networks.setdefault((f"{row['model']}{width}", row["image"]), {})
        of[f"{row['layout']}, {row['precision']}"] = row
    first, *others = list(dict.fromkeys(way for found in networks.values() for way in found))
    rows = [[network, image, f"{found[first]['images_per_second']:,.0f}",
             *(f"{found[way]['ratio']:.2f}" for way in others)]
            for (network, image), found in networks.items()]
    return as_table(["network and width", "image", f"images/s: {first}", *others], rows) + (
        f"\nThe other columns are ratios to the first. Medians of {record['rounds']} rounds in "
        f"turn; {machine_of(record)}")


TABLES = {"ablation": ablation, "kernels": kernels, "training": training, "scale": scale,
          "layouts": layouts}
