"""fedmask.runs.commit: a commit is named, and so is a difference from it."""

import subprocess
from pathlib import Path

from fedmask.runs.commit import commit_of


def test_a_changed_clone_is_told_from_its_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    commit = git("rev-parse", "--short", "HEAD")
    assert commit_of(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path) == commit + "+"


def test_outside_a_clone_it_is_unknown(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == "unknown"
