"""What `scripts/merge.py` writes: a Hugging Face folder that knows where it comes from, and maybe its head."""

from fedmask.merged.facts import SECTION, MergedFacts
from fedmask.merged.folder import HEAD_FILE, read_back, write_merged

__all__ = ["HEAD_FILE", "SECTION", "MergedFacts", "read_back", "write_merged"]
