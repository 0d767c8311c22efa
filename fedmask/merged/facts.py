"""Where a merged folder comes from, as its config.json says it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmask.errors import FedmaskError
from fedmask.shown import shown
from fedmask.training.vector_file import MAX_LENGTH

SECTION = "fedmask"
"""The key of config.json under which the facts stand."""


@dataclass(frozen=True)
class MergedFacts:
    """Where a merged folder comes from; with a head, what it is for."""

    base_name: str
    base_digest: str
    inputs: Mapping[str, Any]
    """`BaseModel.inputs`, of the base and so of the folder."""
    run: str | None
    """`Settings.run_digest`; None where the adapter does not say."""
    max_length: int
    """Tokens that texts are cut to."""
    digest: str
    """Of the merged parameters."""
    stand_in_id: int
    """The token of a text that has none."""
    task: str | None = None
    """Of the head; None where there is none."""
    pairs: bool | None = None
    """Whether the head's texts are pairs; None where there is no head, or it does not say."""

    @staticmethod
    def of(config: object) -> "MergedFacts | None":
        """What a folder's configuration says; None where it says nothing: of an older merge, or of no merge.

        Raises FedmaskError where it is damaged.
        """
        section = getattr(config, SECTION, None)
        if section is None:
            return None
        try:
            facts = MergedFacts(**section)
        except TypeError as error:
            raise FedmaskError(f"config.json: its section {SECTION} is damaged ({error}); merge again") from error
        for name, kinds in _KINDS.items():
            if type(value := getattr(facts, name)) not in kinds:
                raise FedmaskError(f"config.json: {SECTION}.{name} is {shown(value)}; merge again")
        if not 1 <= facts.max_length <= MAX_LENGTH:
            raise FedmaskError(f"config.json: {SECTION}.max_length is {facts.max_length!r}, no length; merge again")
        return facts


_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("base_name", "base_digest", "digest"), (str,)),
    **dict.fromkeys(("run", "task"), (str, type(None))),
    **dict.fromkeys(("max_length", "stand_in_id"), (int,)),
    "inputs": (dict,),
    "pairs": (bool, type(None)),
}
