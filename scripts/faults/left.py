"""All that a run leaves in its folder, but for what may differ: seconds, its name, and the pages made from them."""

import json
from pathlib import Path
from typing import Any

from fedmask.files import LOCK
from fedmask.runs.folder import REPORT, RESUMES, TENSORBOARD
from fedmask.sealed_file import read_sealed

_PASSED_OVER = (REPORT, RESUMES, LOCK)


def left_by(folder: Path) -> dict[str, Any]:
    """By a file's name its content, comparable with that of another run's. Raises FedmaskError for a damaged file."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: _content(path, name)
        for name, path in files.items()
        if name not in _PASSED_OVER and not name.startswith(f"{TENSORBOARD}/")
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of files that are not the same in both, or in one only."""
    missing = object()
    return [name for name in sorted({*found, *expected}) if found.get(name, missing) != expected.get(name, missing)]


def _content(path: Path, name: str) -> Any:
    if name.startswith("checkpoints/") or "/state/" in name:
        facts, vectors = read_sealed(path, "checkpoint" if name.startswith("checkpoints/") else "client-state")
        without = {key: value for key, value in facts.items() if key not in ("run_id", "seconds", "file_bytes")}
        return without, {vector: values.tobytes() for vector, values in vectors.items()}
    if name == "rounds.jsonl":
        return [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
    if name == "summary.json":
        return json.loads(path.read_text()) | {"seconds": 0, "run_id": ""}
    if name == "config.yaml":
        return [line for line in path.read_text().splitlines() if not line.startswith("output:")]
    return path.read_bytes()
