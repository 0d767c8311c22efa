"""A study: a grid of runs in cells. In: a study's YAML and the cells that are finished. Out: the cells to run next.

A cell is one run: a row (a method) in a setting (data and clients) under one seed. A row's rates are tuned first, key
after key, on one setting, one seed and the validation split; its final cells take the rates that won and are the only
ones scored on the test split. What comes next follows from the finished cells alone, so a study can be stopped at any
moment and taken up again.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmask.errors import ConfigError, FedmaskError
from fedmask.runs.config import decimal, plain_value
from fedmask.runs.strict_yaml import read_document, text_of
from fedmask.shown import shown

TUNING_SEED = 0
_NAME = re.compile("[A-Za-z0-9_]+")
KEPT_OF_SUMMARY = (
    "score",
    "own_score",
    "own_majority_score",
    "worst_client_score",
    "mean_score",
    "communication",
    "clients_never_drawn",
    "test_failure_causes",
    "seconds",
)
"""What tables are made of; the whole summary stays in the cell's run folder."""


@dataclass(frozen=True)
class Setting:
    """Data and clients on which rows are compared."""

    name: str
    title: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Tuning:
    """Rates to choose, on one setting: candidates by key; later keys are tuned with the earlier ones chosen."""

    setting: str
    candidates: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Comparison:
    """What a row is held against: another row, and how much of its bytes and score it may take."""

    row: str
    most_payload: float | None
    """Fraction of the other's payload, both ways together; None where it only informs."""
    most_points: float | None
    """Hundredths of the score that may be lost."""


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
    against: Comparison | None = None


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
    def kind(self) -> str:
        """Cells of one kind cost the same."""
        return f"{self.row} on {self.setting}, {'final' if self.is_final else 'tuning'}"

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
        """Raises KeyError, TypeError, ValueError or IndexError for what is no finished cell."""
        cell = Cell(raw["row"], raw["setting"], raw["seed"], raw["is_final"], tuple(raw["overrides"]))
        validation = tuple((entry[0], float(entry[1]), int(entry[2])) for entry in raw["validation"])
        if not validation:
            raise ValueError("it was never scored")
        float(raw["summary"]["seconds"])
        return cls(cell, raw["commit"], raw["summary"], validation)


# ----------------------------------------------------------------------------------------------------------------------
# Which cells there are, and which come next
# ----------------------------------------------------------------------------------------------------------------------


def next_cells(study: Study, num_seeds: int, finished: Mapping[str, Finished]) -> list[Cell]:
    """The cells that can run now: not finished, and every rate they need is chosen.

    finished: by the cell's name. The list is empty when the study is complete.
    """
    cells: dict[str, Cell] = {}
    for row in study.rows.values():
        rates = chosen_rates(study, row, finished)
        open_cells = (
            _final_cells(study, row, num_seeds, rates) if rates is not None else _candidates(study, row, finished)
        )
        cells.update({cell.name: cell for cell in open_cells if cell.name not in finished})
    return list(cells.values())


def planned_cells(study: Study, num_seeds: int) -> list[Cell]:
    """Every cell as far as it can be known before any has run: tuned rates stand at their first candidates."""
    cells: dict[str, Cell] = {}
    for row in study.rows.values():
        first = _first_candidates(study.rows[row.rates_from] if row.rates_from else row)
        for key, candidates in row.tuning.candidates if row.tuning else ():
            for value in candidates:
                cell = _tuning_cell(study, row, {**first, key: value})
                cells[cell.name] = cell
        cells.update({cell.name: cell for cell in _final_cells(study, row, num_seeds, first)})
    return list(cells.values())


def chosen_rates(study: Study, row: Row, finished: Mapping[str, Finished]) -> dict[str, float] | None:
    """The rates that the row's final cells take: the best on validation, the first of equals; None while it is open."""
    if row.rates_from is not None:
        return chosen_rates(study, study.rows[row.rates_from], finished)
    rates: dict[str, float] = {}
    for stage in _tuning_stages(study, row, finished):
        if any(cell.name not in finished for _, cell in stage):
            return None
        rates = _best(stage, finished)
    return rates


def tuning_results(study: Study, row: Row, finished: Mapping[str, Finished]) -> list[tuple[dict[str, float], Finished]]:
    """The rates that were tried and what each gave, in the order of trying."""
    tried = {
        cell.name: (rates, finished[cell.name])
        for stage in _tuning_stages(study, row, finished)
        for rates, cell in stage
        if cell.name in finished
    }
    return list(tried.values())


def final_results(
    study: Study, num_seeds: int, finished: Mapping[str, Finished]
) -> dict[tuple[str, str], list[Finished]]:
    """Finished final cells by (row, setting), in the order of their seeds; only those that the study still asks for."""
    results: dict[tuple[str, str], list[Finished]] = {}
    for row in study.rows.values():
        rates = chosen_rates(study, row, finished)
        for cell in [] if rates is None else _final_cells(study, row, num_seeds, rates):
            if cell.name in finished:
                results.setdefault((row.name, cell.setting), []).append(finished[cell.name])
    return results


def asked_for(study: Study, num_seeds: int, finished: Mapping[str, Finished]) -> dict[str, Finished]:
    """The finished cells that the study, as it is now, asks for; others were left by a grid that was changed."""
    tried = [entry for row in study.rows.values() for _, entry in tuning_results(study, row, finished)]
    final = [entry for entries in final_results(study, num_seeds, finished).values() for entry in entries]
    return {entry.cell.name: entry for entry in (*tried, *final)}


def _candidates(study: Study, row: Row, finished: Mapping[str, Finished]) -> list[Cell]:
    """The cells of the first key that is not chosen yet; none where the row waits for another row's rates."""
    stages = list(_tuning_stages(study, row, finished))
    return [cell for _, cell in stages[-1]] if stages else []


def _tuning_stages(
    study: Study, row: Row, finished: Mapping[str, Finished]
) -> Iterator[list[tuple[dict[str, float], Cell]]]:
    """Key by key the candidates, earlier keys at their best, later ones at their first; ends at the first open key."""
    rates = _first_candidates(row)
    for key, candidates in row.tuning.candidates if row.tuning else ():
        tried = [{**rates, key: value} for value in candidates]
        stage = [(rates_, _tuning_cell(study, row, rates_)) for rates_ in tried]
        yield stage
        if any(cell.name not in finished for _, cell in stage):
            return
        rates = _best(stage, finished)


def _first_candidates(row: Row) -> dict[str, float]:
    return {key: candidates[0] for key, candidates in row.tuning.candidates} if row.tuning else {}


def _best(stage: Sequence[tuple[dict[str, float], Cell]], finished: Mapping[str, Finished]) -> dict[str, float]:
    return max(stage, key=lambda entry: finished[entry[1].name].validation_score)[0]


def _tuning_cell(study: Study, row: Row, rates: Mapping[str, float]) -> Cell:
    assert row.tuning is not None
    overrides = _overrides(study, row, row.tuning.setting, TUNING_SEED, rates)
    return Cell(row.name, row.tuning.setting, TUNING_SEED, False, (*overrides, "score_test=false"))


def _final_cells(study: Study, row: Row, num_seeds: int, rates: Mapping[str, float]) -> Iterator[Cell]:
    for setting in row.settings:
        for seed in range(num_seeds if row.is_finalist else 1):
            yield Cell(row.name, setting, seed, True, _overrides(study, row, setting, seed, rates))


def _overrides(study: Study, row: Row, setting: str, seed: int, rates: Mapping[str, float]) -> tuple[str, ...]:
    """Of a key given twice the last counts: what the row says wins over the setting, its rates over all."""
    chosen = (f"{key}={value:g}" for key, value in rates.items())
    return (*study.overrides, *study.settings[setting].overrides, *row.overrides, *chosen, f"seed={seed}")


# ----------------------------------------------------------------------------------------------------------------------
# Finished cells
# ----------------------------------------------------------------------------------------------------------------------


def finished_cell(
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    messages: Sequence[Mapping[str, Any]],
) -> Finished:
    """A cell from its own facts (row, setting, seed, is_final, overrides, commit) and the files of its run folder."""
    bytes_until = dict.fromkeys(range(len(rounds) + 1), 0)
    for message in messages:
        bytes_until[message["round"]] += message["wire_bytes"]
    for server_round in range(1, len(rounds) + 1):
        bytes_until[server_round] += bytes_until[server_round - 1]
    scored = [line for line in rounds if line["mean_score"] is not None]
    return Finished.from_dict(
        {
            **facts,
            "summary": {key: value for key, value in summary.items() if key in KEPT_OF_SUMMARY},
            "validation": [[line["round"], line["mean_score"], bytes_until[line["round"]]] for line in scored],
        }
    )


def read_results(path: Path) -> dict[str, Finished]:
    """Finished cells by name, from a file with a JSON object a line.

    Raises FedmaskError with the line that cannot be read.
    """
    if not path.is_file():
        raise FedmaskError(f"results={path}: there is no such file")
    finished: dict[str, Finished] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FedmaskError(f"results={path}: no text ({error})") from error
    for number, line in enumerate(lines, start=1):
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
            if key in raw and not _is_of(kind, raw[key]):
                self.faults.append(f"{where}.{key}: not {shown(raw[key])}; must be {_KINDS[kind]}")
            elif key in raw:
                taken[key] = raw[key]
        return taken

    def texts(self, raw: Sequence[object], where: str) -> tuple[str, ...]:
        """The entries of a list, each of which must be a text."""
        self.faults += [
            f"{where}: not {shown(entry)}; must be {_KINDS[str]}" for entry in raw if not isinstance(entry, str)
        ]
        return tuple(entry for entry in raw if isinstance(entry, str))


_KINDS: Mapping[type | tuple[type, ...], str] = {
    str: "a text, in quotes where YAML takes it for something else",
    bool: "true or false",
    (int, float): "a number",
    list: "a list",
    dict: "a mapping",
}


def _is_of(kind: type | tuple[type, ...], value: object) -> bool:
    """A truth value is an int to Python, and a slip to a person."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def read_study(path: Path) -> Study:
    """Raises FedmaskError with every fault of the file, one line each."""
    reader = _Reader(path)
    try:
        raw = read_document(text_of(path)).content
    except ConfigError as error:
        raise ConfigError([f"{path.name}: {fault}" for fault in error.faults]) from error
    kinds: dict[str, type | tuple[type, ...]] = {
        "question": str,
        "budget_hours": (int, float),
        "overrides": list,
        "settings": dict,
        "rows": dict,
    }
    given = reader.take(raw, path.stem, kinds, *kinds)
    reader.faults += [
        f"{group}.{shown(name)}: a name is of letters, digits and _, for folders are called by it"
        for group in ("settings", "rows")
        for name in given.get(group, {})
        if not _NAME.fullmatch(name)
    ]
    overrides = reader.texts(given.get("overrides", ()), "overrides")
    settings = {name: _setting(reader, name, entry) for name, entry in given.get("settings", {}).items()}
    rows = {name: _row(reader, name, entry, tuple(settings)) for name, entry in given.get("rows", {}).items()}
    for row in rows.values():
        _check_references(reader, row, settings, rows)
    if reader.faults:
        raise ConfigError([f"study {path.stem}: {fault}" for fault in reader.faults])
    return Study(path.stem, given["question"], float(given["budget_hours"]), overrides, settings, rows)


def _setting(reader: _Reader, name: str, raw: object) -> Setting:
    given = reader.take(raw, f"settings.{name}", {"title": str, "overrides": list}, "title", "overrides")
    overrides = reader.texts(given.get("overrides", ()), f"settings.{name}.overrides")
    return Setting(name, given.get("title", name), overrides)


def _row(reader: _Reader, name: str, raw: object, all_settings: tuple[str, ...]) -> Row:
    kinds: dict[str, type | tuple[type, ...]] = {
        "title": str,
        "overrides": list,
        "settings": list,
        "finalist": bool,
        "tune": dict,
        "rates_from": str,
        "against": dict,
    }
    given = reader.take(raw, f"rows.{name}", kinds, "title", "overrides")
    return Row(
        name=name,
        title=given.get("title", name),
        overrides=reader.texts(given.get("overrides", ()), f"rows.{name}.overrides"),
        settings=reader.texts(given["settings"], f"rows.{name}.settings") if "settings" in given else all_settings,
        is_finalist=given.get("finalist", False),
        tuning=_tuning(reader, f"rows.{name}.tune", given["tune"]) if "tune" in given else None,
        rates_from=given.get("rates_from"),
        against=_comparison(reader, f"rows.{name}.against", given["against"]) if "against" in given else None,
    )


def _comparison(reader: _Reader, where: str, raw: Mapping[str, Any]) -> Comparison:
    given = reader.take(raw, where, {"row": str, "payload": (int, float), "points": (int, float)}, "row")
    return Comparison(given.get("row", ""), given.get("payload"), given.get("points"))


def _tuning(reader: _Reader, where: str, raw: Mapping[str, Any]) -> Tuning:
    candidates = []
    for key, values in raw.items():
        if key == "setting":
            continue
        if not isinstance(values, list) or not values or not all(_is_of((int, float), value) for value in values):
            reader.faults.append(f"{where}.{shown(key)}: must be a list of numbers{_not_numbers(values)}")
            continue
        candidates.append((key, tuple(float(value) for value in values)))
    if "setting" not in raw:
        reader.faults.append(f"{where}.setting: missing; name the setting to tune on")
    return Tuning(str(raw.get("setting")), tuple(candidates))


def _not_numbers(values: object) -> str:
    """What to write for texts that spell numbers: to YAML 1e-3 is a text."""
    texts = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    spelt = [f"{decimal(plain_value(text))} for {text}" for text in texts if _is_of((int, float), plain_value(text))]
    return f"; write {', '.join(spelt)}" if spelt else ""


def _check_references(reader: _Reader, row: Row, settings: Mapping[str, Setting], rows: Mapping[str, Row]) -> None:
    named = [*row.settings, *([row.tuning.setting] if row.tuning else [])]
    reader.faults += [
        f"rows.{row.name}: no setting {name}; there are {', '.join(settings)}" for name in named if name not in settings
    ]
    if row.against is not None and (row.against.row not in rows or row.against.row == row.name):
        reader.faults.append(f"rows.{row.name}.against.row: {row.against.row!r} is no other row")
    if row.rates_from is None:
        return
    if row.tuning is not None:
        reader.faults.append(f"rows.{row.name}: has both tune and rates_from; leave one out")
    if row.rates_from not in rows or rows[row.rates_from].tuning is None:
        reader.faults.append(f"rows.{row.name}.rates_from: {row.rates_from} is no row with rates of its own to tune")
