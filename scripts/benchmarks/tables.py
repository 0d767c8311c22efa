"""Rows as tables: in the terminal, and in the README."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.machine import machine_line
from benchmarks.rows import Row
from fedmask.files import write_atomically
from fedmask.runs.markers import replaced_between

BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"


def section_table(section: str, rows: Iterable[Row]) -> Table:
    table = Table(title=f"{section}: ratio = how many times better fedmask is", title_justify="left")
    for column in ("work", "fedmask", "beside"):
        table.add_column(column)
    for column in ("fedmask's", "rival's", "unit", "ratio", "at least", "met"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        numbers = (number(row.value), number(row.rival_value), row.unit, f"{row.ratio:.3g}")
        target = () if row.target is None else (f"{row.target:.3g}", "yes" if row.met else "NO")
        table.add_row(row.work, row.variant, row.rival, *numbers, *target)
    return table


def verdict(rows: Sequence[Row]) -> str:
    judged = [row for row in rows if row.target is not None]
    missed = [f"  missed: {sentence(row)}" for row in judged if not row.met]
    return "\n".join([f"targets met: {len(judged) - len(missed)} of {len(judged)}", *missed])


def sentence(row: Row) -> str:
    told = f"{row.work}: {row.variant} {number(row.value)} {row.unit}, {row.rival} {number(row.rival_value)}: "
    told += f"{row.ratio:.3g}x"
    return told if row.target is None else f"{told}, at least {row.target:.3g} {'met' if row.met else 'MISSED'}"


def number(value: float) -> str:
    """Three significant digits, and no exponent where a person would not write one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rewrite_readme(readme: Path, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Put the rows that have a target between the README's markers. Raises FedmaskError where it has none."""
    text = "\n".join(_readme_lines(rows, facts))
    write_atomically(readme, replaced_between(readme, BEGIN, END, text).encode())


def _readme_lines(rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> Iterator[str]:
    judged = [row for row in rows if row["target"] is not None]
    yield "| section | work | fedmask | beside | values | times better | at least | met |"
    yield "| --- | --- | --- | --- | --- | ---: | ---: | --- |"
    for row in judged:
        values = f"{number(row['value'])} to {number(row['rival_value'])} {row['unit']}"
        ratios = f"{row['ratio']:.3g} | {row['target']:.3g} | {'yes' if row['met'] else '**no**'}"
        yield f"| {row['section']} | {row['work']} | {row['variant']} | {row['rival']} | {values} | {ratios} |"
    yield ""
    yield (
        f"{sum(row['met'] for row in judged)} of {len(judged)} targets met. Made by `python scripts/benchmark.py"
        f" section=all output=DIR`, medians of alternating runs, on {machine_line(facts)}. DIR/benchmark.json also has"
        " the rows without a target: CPU times, and rivals that inform."
    )
