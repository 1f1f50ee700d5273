"""What the records in results/ say: the tables of README and docs, and figures/.

A Markdown file has places for tables, which `render` fills:

    <!-- render: NAME -->
    <!-- end -->

NAME is one of tables.BLOCKS; or `example FILE`, which prints examples/FILE.py; or `study NAME`,
which is the table of an experiment that is one study.
"""
import re
from pathlib import Path

from advprune import files
from experiments import figures, tables
from experiments.records import Records

PLACE = re.compile(r"(<!-- render: ([\w. -]+) -->\n).*?( *<!-- end -->)", re.DOTALL)


def render(root: Path) -> list[str]:
    """Write all tables and pictures below root; returns the files written."""
    records, written = Records(root / "results"), []
    for path in [*root.glob("*.md"), *(root / "docs").glob("*.md")]:
        text = path.read_text()
        filled = PLACE.sub(lambda at: at[1] + block(at[2], root, records) + at[3], text)
        if filled != text:
            files.write(path, filled)
            written.append(str(path.relative_to(root)))
    for name, draw in figures.FIGURES.items():
        if figure := draw(records):
            files.write_figure(root / "figures" / f"{name}.png", figure)
            written.append(f"figures/{name}.png")
    return written


def block(name: str, root: Path, records: Records | None = None) -> str:
    """The text of one place; records: those of root, where they are at hand."""
    kind, _, of = name.partition(" ")
    if kind == "example":
        return f"```python\n{(root / 'examples' / f'{of}.py').read_text()}```\n"
    records = records or Records(root / "results")
    return tables.of_study(of, records) if kind == "study" else tables.BLOCKS[name](records)
