"""A study: a grid of runs in cells, as data. In: a study's YAML and the cells that are finished. Out: the cells to run next.

A cell is one run: a row (a method) in a setting (data and clients) under one seed. A row's rates are tuned first, key
after key, on one setting, one seed and the validation split; its final cells take the rates that won and are the only
ones scored on the test split. What comes next follows from the finished cells alone, so a study can be stopped at any
moment and taken up again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fedmask.errors import FedmaskError

TUNING_SEED = 0


@dataclass(frozen=True)
class Setting:
    """Data and clients on which rows are compared."""

    name: str
    title: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Tuning:
    """Rates to choose: for each key its candidates, on one setting; a later key is tuned with the earlier ones chosen."""

    setting: str
    candidates: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Row:
    """A method: overrides, and where its rates come from."""

    name: str
    title: str
    overrides: tuple[str, ...]
    settings: tuple[str, ...]
    is_finalist: bool
    """Whether it runs under several seeds."""
    tuning: Tuning | None
    rates_from: str | None
    """The row whose tuned rates this one takes."""


@dataclass(frozen=True)
class Study:
    name: str
    question: str
    budget_hours: float
    overrides: tuple[str, ...]
    """Of every cell."""
    settings: Mapping[str, Setting]
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    row: str
    setting: str
    seed: int
    is_final: bool
    """Scored on the test split; else a candidate of tuning, scored on validation."""
    overrides: tuple[str, ...]
    """The run's `key=value` arguments, without the folders of this machine."""

    @property
    def name(self) -> str:
        """Of the cell's folder: the digest makes a cell of changed overrides another cell."""
        digest = hashlib.sha256("\n".join(self.overrides).encode()).hexdigest()[:8]
        return f"{self.setting}-{self.row}-{'seed' if self.is_final else 'tune'}{self.seed}-{digest}"


@dataclass(frozen=True, eq=False)
class Finished:
    """What is kept of a finished cell."""

    cell: Cell
    commit: str
    """Of the code that ran it; ends with + where the code had uncommitted changes."""
    summary: Mapping[str, Any]
    validation: tuple[tuple[int, float, int], ...]
    """(round, mean score on validation, wire bytes of all messages until then), for the rounds that were scored."""

    @property
    def validation_score(self) -> float:
        """After the last round; the mean over tasks."""
        return self.validation[-1][1]

    def as_dict(self) -> dict[str, Any]:
        cell = self.cell
        return {
            "row": cell.row,
            "setting": cell.setting,
            "seed": cell.seed,
            "is_final": cell.is_final,
            "overrides": list(cell.overrides),
            "commit": self.commit,
            "summary": dict(self.summary),
            "validation": [list(entry) for entry in self.validation],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Finished":
        cell = Cell(raw["row"], raw["setting"], raw["seed"], raw["is_final"], tuple(raw["overrides"]))
        return cls(
            cell, raw["commit"], raw["summary"], tuple((entry[0], entry[1], entry[2]) for entry in raw["validation"])
        )


# ----------------------------------------------------------------------------------------------------------------------
# Which cells there are, and which come next
# ----------------------------------------------------------------------------------------------------------------------


def next_cells(study: Study, num_seeds: int, finished: Mapping[str, Finished]) -> list[Cell]:
    """The cells that can run now: not finished, and every rate they need is chosen.

    finished: by the cell's name. The list is empty when the study is complete.
    """
    cells: dict[str, Cell] = {}
    for row in study.rows.values():
        for cell in _open_cells(study, row, num_seeds, finished):
            if cell.name not in finished:
                cells.setdefault(cell.name, cell)
    return list(cells.values())


def planned_cells(study: Study, num_seeds: int) -> list[Cell]:
    """Every cell of the study as far as it can be known before any has run: tuned rates stand at their first candidate."""
    cells: dict[str, Cell] = {}
    for row in study.rows.values():
        if row.tuning is not None:
            rates: dict[str, float] = {}
            for key, candidates in row.tuning.candidates:
                for value in candidates:
                    cell = _tuning_cell(study, row, row.tuning, {**rates, key: value})
                    cells.setdefault(cell.name, cell)
                rates[key] = candidates[0]
        source = study.rows[row.rates_from] if row.rates_from else row
        first = {key: candidates[0] for key, candidates in source.tuning.candidates} if source.tuning else {}
        for cell in _final_cells(study, row, num_seeds, first):
            cells.setdefault(cell.name, cell)
    return list(cells.values())


def chosen_rates(study: Study, row: Row, finished: Mapping[str, Finished]) -> dict[str, float] | None:
    """The rates that the row's final cells take: the best on validation, the first of equals; None while it is open."""
    if row.rates_from is not None:
        return chosen_rates(study, study.rows[row.rates_from], finished)
    rates: dict[str, float] = {}
    if row.tuning is None:
        return rates
    for key, candidates in row.tuning.candidates:
        scores = []
        for value in candidates:
            cell = _tuning_cell(study, row, row.tuning, {**rates, key: value})
            if cell.name not in finished:
                return None
            scores.append(finished[cell.name].validation_score)
        rates[key] = candidates[scores.index(max(scores))]
    return rates


def tuning_results(
    study: Study, row: Row, finished: Mapping[str, Finished]
) -> Iterator[tuple[Mapping[str, float], Finished]]:
    """The rates that were tried and what each gave, in the order of trying."""
    rates: dict[str, float] = {}
    for key, candidates in row.tuning.candidates if row.tuning is not None else ():
        assert row.tuning is not None
        tried = []
        for value in candidates:
            cell = _tuning_cell(study, row, row.tuning, {**rates, key: value})
            if cell.name in finished:
                tried.append((value, finished[cell.name]))
                yield {**rates, key: value}, finished[cell.name]
        if len(tried) < len(candidates):
            return
        rates[key] = max(tried, key=lambda entry: entry[1].validation_score)[0]


def final_results(
    study: Study, num_seeds: int, finished: Mapping[str, Finished]
) -> dict[tuple[str, str], list[Finished]]:
    """Finished final cells by (row, setting), in the order of their seeds; what the study no longer asks for is left out."""
    results: dict[tuple[str, str], list[Finished]] = {}
    for row in study.rows.values():
        rates = chosen_rates(study, row, finished)
        for cell in [] if rates is None else _final_cells(study, row, num_seeds, rates):
            if cell.name in finished:
                results.setdefault((row.name, cell.setting), []).append(finished[cell.name])
    return results


def _open_cells(study: Study, row: Row, num_seeds: int, finished: Mapping[str, Finished]) -> Iterator[Cell]:
    rates = chosen_rates(study, row, finished)
    if rates is not None:
        yield from _final_cells(study, row, num_seeds, rates)
    elif row.tuning is not None:
        yield from _next_candidates(study, row, row.tuning, finished)


def _next_candidates(study: Study, row: Row, tuning: Tuning, finished: Mapping[str, Finished]) -> Iterator[Cell]:
    """The candidates of the first key that is not chosen yet."""
    rates: dict[str, float] = {}
    for key, candidates in tuning.candidates:
        cells = [_tuning_cell(study, row, tuning, {**rates, key: value}) for value in candidates]
        if any(cell.name not in finished for cell in cells):
            yield from cells
            return
        scores = [finished[cell.name].validation_score for cell in cells]
        rates[key] = candidates[scores.index(max(scores))]


def _tuning_cell(study: Study, row: Row, tuning: Tuning, rates: Mapping[str, float]) -> Cell:
    overrides = _overrides(study, row, tuning.setting, TUNING_SEED, rates)
    return Cell(row.name, tuning.setting, TUNING_SEED, False, (*overrides, "score_test=false"))


def _final_cells(study: Study, row: Row, num_seeds: int, rates: Mapping[str, float]) -> Iterator[Cell]:
    for setting in row.settings:
        for seed in range(num_seeds if row.is_finalist else 1):
            yield Cell(row.name, setting, seed, True, _overrides(study, row, setting, seed, rates))


def _overrides(study: Study, row: Row, setting: str, seed: int, rates: Mapping[str, float]) -> tuple[str, ...]:
    """Of a key given twice the last counts: what the row says wins over the setting, its rates over all."""
    chosen = (f"{key}={value:g}" for key, value in rates.items())
    return (*study.overrides, *study.settings[setting].overrides, *row.overrides, *chosen, f"seed={seed}")


# ----------------------------------------------------------------------------------------------------------------------
# Finished cells on disk
# ----------------------------------------------------------------------------------------------------------------------


def read_results(path: Path) -> dict[str, Finished]:
    """Finished cells by name, from a file with a JSON object a line.

    Raises FedmaskError with the line that cannot be read.
    """
    finished: dict[str, Finished] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entry = Finished.from_dict(json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise FedmaskError(f"{path}, line {number}: no finished cell of a study ({error!r})") from error
        finished[entry.cell.name] = entry
    return finished


def results_text(finished: Mapping[str, Finished]) -> str:
    """Finished cells as lines of JSON, in the order of their names: the same cells give the same text."""
    return "".join(json.dumps(finished[name].as_dict()) + "\n" for name in sorted(finished))


# ----------------------------------------------------------------------------------------------------------------------
# The study's file
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """Reads a study's mapping; collects every fault."""

    path: Path
    faults: list[str] = field(default_factory=list)

    def take(
        self, raw: object, where: str, kinds: Mapping[str, type | tuple[type, ...]], *needed: str
    ) -> dict[str, Any]:
        """The entries of a mapping, those of a wrong kind left out."""
        if not isinstance(raw, Mapping):
            self.faults.append(f"{where}: must be a mapping")
            return {}
        self.faults += [f"{where}.{key}: no such key; there are {', '.join(kinds)}" for key in raw if key not in kinds]
        self.faults += [f"{where}.{key}: missing" for key in needed if key not in raw]
        taken = {}
        for key, kind in kinds.items():
            if key in raw and not isinstance(raw[key], kind):
                self.faults.append(f"{where}.{key}: not {raw[key]!r}")
            elif key in raw:
                taken[key] = raw[key]
        return taken


def read_study(path: Path) -> Study:
    """Raises FedmaskError with every fault of the file, one line each."""
    reader = _Reader(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise FedmaskError(f"{path.name}: not YAML: {' '.join(str(error).split())}") from error
    kinds = {"question": str, "budget_hours": (int, float), "overrides": list, "settings": dict, "rows": dict}
    given = reader.take(raw, path.stem, kinds, *kinds)
    settings = {name: _setting(reader, name, entry) for name, entry in given.get("settings", {}).items()}
    rows = {name: _row(reader, name, entry, tuple(settings)) for name, entry in given.get("rows", {}).items()}
    for row in rows.values():
        _check_references(reader, row, settings, rows)
    if reader.faults:
        raise FedmaskError("\n".join(f"study {path.stem}: {fault}" for fault in reader.faults))
    return Study(path.stem, given["question"], float(given["budget_hours"]), _texts(given["overrides"]), settings, rows)


def _setting(reader: _Reader, name: str, raw: object) -> Setting:
    given = reader.take(raw, f"settings.{name}", {"title": str, "overrides": list}, "title", "overrides")
    return Setting(name, given.get("title", name), _texts(given.get("overrides", ())))


def _row(reader: _Reader, name: str, raw: object, all_settings: tuple[str, ...]) -> Row:
    kinds = {"title": str, "overrides": list, "settings": list, "finalist": bool, "tune": dict, "rates_from": str}
    given = reader.take(raw, f"rows.{name}", kinds, "title", "overrides")
    return Row(
        name=name,
        title=given.get("title", name),
        overrides=_texts(given.get("overrides", ())),
        settings=_texts(given["settings"]) if "settings" in given else all_settings,
        is_finalist=given.get("finalist", False),
        tuning=_tuning(reader, f"rows.{name}.tune", given["tune"]) if "tune" in given else None,
        rates_from=given.get("rates_from"),
    )


def _tuning(reader: _Reader, where: str, raw: Mapping[str, Any]) -> Tuning:
    candidates = []
    for key, values in raw.items():
        if key == "on":
            continue
        if not isinstance(values, list) or not values or not all(isinstance(value, int | float) for value in values):
            reader.faults.append(f"{where}.{key}: must be a list of numbers")
            continue
        candidates.append((key, tuple(float(value) for value in values)))
    if "on" not in raw:
        reader.faults.append(f"{where}.on: missing; name the setting to tune on")
    return Tuning(str(raw.get("on")), tuple(candidates))


def _check_references(reader: _Reader, row: Row, settings: Mapping[str, Setting], rows: Mapping[str, Row]) -> None:
    named = [*row.settings, *([row.tuning.setting] if row.tuning else [])]
    reader.faults += [
        f"rows.{row.name}: no setting {name}; there are {', '.join(settings)}" for name in named if name not in settings
    ]
    if row.rates_from is None:
        return
    if row.tuning is not None:
        reader.faults.append(f"rows.{row.name}: has both tune and rates_from; leave one out")
    if row.rates_from not in rows or rows[row.rates_from].tuning is None:
        reader.faults.append(f"rows.{row.name}.rates_from: {row.rates_from} is no row with rates of its own to tune")


def _texts(entries: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(entry) for entry in entries)
