"""Outcomes as tables: in the terminal, in docs/reliability.md, and a line each in the README."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from faults.outcome import Outcome
from fedmask.files import write_atomically
from fedmask.runs.markers import replaced_between

BEGIN, END = "<!-- chaos -->", "<!-- /chaos -->"

Parts = Mapping[str, Mapping[str, Any]]
"""What chaos.json holds: by a part's name its outcome, and with which command, commit and day it was made."""


def terminal_table(outcome: Outcome) -> Table:
    table = Table(title=f"{outcome.title}: {outcome.limit}", title_justify="left")
    for number, column in enumerate(outcome.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in outcome.rows:
        table.add_row(*row)
    return table


def rewrite(page: Path, readme: Path, parts: Parts) -> None:
    """The tables between the markers of both. Raises FedmaskError where one has none; then neither is touched."""
    texts = {path: "\n".join(lines(parts)) for path, lines in ((page, _page_lines), (readme, _readme_lines))}
    replaced = {path: replaced_between(path, BEGIN, END, text) for path, text in texts.items()}
    for path, text in replaced.items():
        write_atomically(path, text.encode())


def _page_lines(parts: Parts) -> Iterator[str]:
    for part in parts.values():
        yield from ("", f"## {part['title']}", "", f"What has to come out: {part['limit']}.", "")
        yield from ("```", part["command"], "```", "")
        yield from _table_lines(part["columns"], part["rows"], "---:")
        yield from ("", f"{'Met' if part['passed'] else '**Missed**'}: {part['figure']}.")
        yield from part["notes"]
        yield f"Commit {part['commit']}, {part['date']}."
    yield ""


def _table_lines(columns: list[str], rows: list[list[str]], rule: str) -> Iterator[str]:
    """rule: under all columns but the first."""
    yield f"| {' | '.join(columns)} |"
    yield f"| --- |{f' {rule} |' * (len(columns) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _readme_lines(parts: Parts) -> Iterator[str]:
    yield from _table_lines(
        ["what is done to a run", "what came out", "what has to", "met", "commit"],
        [
            [part["title"], part["figure"], part["limit"], "yes" if part["passed"] else "**no**", part["commit"]]
            for part in parts.values()
        ],
        "---",
    )
