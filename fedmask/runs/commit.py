"""Which code it was: the commit of a clone."""

import subprocess
from pathlib import Path


def commit_of(root: Path) -> str:
    """The short name of the commit that `root` is at, with + where files differ from it; "unknown" outside a clone."""

    def git(*arguments: str) -> str:
        finished = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        return finished.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain") else "")
