"""The part of a hand-written page that a program writes: what stands between two markers, each on its own line."""

from pathlib import Path

from fedmask.errors import FedmaskError


def replaced_between(path: Path, begin: str, end: str, text: str) -> str:
    """The file's text with what stands between `begin` and `end` replaced; nothing is written.

    Raises FedmaskError where the file lacks one of the markers.
    """
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise FedmaskError(f"{path.name}: has no lines {begin} and {end}; put them where the table shall stand")
    return f"{before}{begin}\n{text}\n{end}{after}"
