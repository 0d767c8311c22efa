"""The sections of scripts/benchmark.py, one module each.

A section is a function `rows(settings: Settings) -> Iterator[Row]` in a module of its own: it measures one thing after
another and yields each row as soon as it is known. What `Settings` and `Row` are stands in rows.py, how time and
memory are measured in measure.py.
"""
