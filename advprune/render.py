"""What the records in results/ say: the tables of README and docs, figures/ and report.html.

A Markdown file has places for tables, which `render` fills:

    <!-- render: NAME -->
    <!-- end -->

NAME is one of BLOCKS, or `example FILE`, which prints examples/FILE.py.
"""
import base64
import re
from pathlib import Path

import markdown

from advprune import curves, evidence, files, plots, speed, tables

PLACE = re.compile(r"(<!-- render: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
BLOCKS = {**tables.BLOCKS, **speed.BLOCKS, **evidence.BLOCKS}
FIGURES = {**plots.FIGURES, **speed.FIGURES, **curves.FIGURES}
PAGES = ("evidence", "choose", "puma", "toy", "geometry", "speed")  # of report.html
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem; }
img { max-width: 100%; } pre, .table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { min-width: 4rem; padding: .25rem .6rem; border-bottom: 1px solid #ccc; text-align: left; }
h1 { margin-top: 3rem; border-top: 3px solid #0072B2; } nav a { margin-right: 1rem; }
td:nth-child(2) { min-width: 9rem; }
"""


def render(root: Path) -> list[str]:
    """Write all tables and pictures below root, and the report; returns the files written."""
    records, written = tables.Records(root / "results"), []
    for path in [*root.glob("*.md"), *(root / "docs").glob("*.md")]:
        text = path.read_text()
        filled = PLACE.sub(lambda at: at[1] + block(at[2], root, records) + at[3], text)
        if filled != text:
            files.write(path, filled)
            written.append(str(path.relative_to(root)))
    for name, draw in FIGURES.items():
        if figure := draw(records):
            files.write_figure(root / "figures" / f"{name}.png", figure)
            written.append(f"figures/{name}.png")
    files.write(root / "report.html", report(root))
    return [*written, "report.html"]


def block(name: str, root: Path, records: tables.Records | None = None) -> str:
    """The text of one place; records: those of root, where they are at hand."""
    kind, _, file = name.partition(" ")
    if kind == "example":
        return f"```python\n{(root / 'examples' / f'{file}.py').read_text()}```\n"
    return BLOCKS[name](records or tables.Records(root / "results"))


def report(root: Path) -> str:
    """The pages of docs/ that hold evidence, as one HTML page that needs no other file."""
    parts, names = [], [name for name in PAGES if (root / f"docs/{name}.md").exists()]
    for name in names:
        text = (root / f"docs/{name}.md").read_text()
        page = markdown.markdown(text, extensions=["tables", "fenced_code"])
        page = re.sub(r'src="\.\./(figures/[\w-]+\.png)"', lambda found: 'src="data:image/png;'
                      f'base64,{base64.b64encode((root / found[1]).read_bytes()).decode()}"', page)
        page = re.sub(r'href="(?!https?:)([^"]*)"', lambda found: (
            f'href="#{Path(found[1]).stem}"' if Path(found[1]).stem in names else ""), page)
        page = re.sub(r"(<table>.*?</table>)", r'<div class="table">\1</div>', page,
                      flags=re.DOTALL)
        parts.append(f'<section id="{name}">{page}</section>')
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in names)
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>advprune: the evidence</title><style>{STYLE}</style></head>"
            f"<body><nav>{links}</nav>{''.join(parts)}</body></html>\n")
