"""The page of a run's report: its look, and the few pieces of HTML that it is put together from.

Arguments called HTML are taken as such; everything else is escaped here.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --muted: #59636e; --line: #d4dae1;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #00875f; --series-3: #a8448a; --series-4: #b07d00;
  --series-5: #5b6675; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --text: #e6e9ee; --muted: #9ca6b1; --line: #363d46;
  --series-0: #56b4e9; --series-1: #f08a4b; --series-2: #2fc59a; --series-3: #de9ac6; --series-4: #f0b429;
  --series-5: #a9b4c0; } }
body { margin: 0; background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 0.5rem; padding-top: 0.8rem; border-top: 1px solid var(--line); }
p { margin: 0.5rem 0; }
.result { font-size: 1.15rem; }
.note, summary, .legend { color: var(--muted); font-size: 0.9rem; }
.scroll { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid var(--line); }
th, td { text-align: right; font-weight: normal; }
th:first-child { text-align: left; }
thead th { color: var(--muted); vertical-align: bottom; }
.facts th, .facts td { text-align: left; }
.grid th, .grid td { padding: 0 0.3rem; border: 0; text-align: center; }
.grid th:first-child { position: sticky; left: 0; background: var(--page); text-align: right; }
.took { color: var(--series-0); }
.failed { color: var(--series-1); font-weight: bold; }
.absent { color: var(--muted); }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
.legend { list-style: none; margin: 0.2rem 0 0.8rem; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1.1rem; }
pre { overflow-x: auto; font-size: 0.85rem; }
"""


def page(title: str, opening: str, sections: Mapping[str, str]) -> str:
    """A whole document: the opening (HTML) under the title, then each section (HTML) under its heading."""
    body = "".join(f"<section>\n<h2>{escape(name)}</h2>\n{content}\n</section>\n" for name, content in sections.items())
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n{opening}\n{body}"
        f"</main>\n</body>\n</html>\n"
    )


def figure(name: str, value: float | None, form: str) -> str:
    """A figure, written in the format `form`, with the whole of it and its name for machines; a dash for None."""
    if value is None:
        return "-"
    return f'<data data-figure="{escape(name)}" value="{value!r}">{value:{form}}</data>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML, the first of a row is its heading. A table wider than the page scrolls in a box of its own."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = (
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    body = "\n".join(lines)
    return f'<div class="scroll"><table class="{kind}">\n<thead><tr>{titles}</tr></thead>\n{body}\n</table></div>\n'


def notes(lines: Iterable[str]) -> str:
    """Sentences (HTML) in small type."""
    return f'<p class="note">{" ".join(lines)}</p>\n'
