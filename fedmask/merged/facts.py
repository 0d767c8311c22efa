"""Where a merged folder comes from, as its config.json says it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmask.errors import FedmaskError
from fedmask.tasks.checks import short

SECTION = "fedmask"
"""The key of config.json under which the facts stand."""


_TYPES: Mapping[str, tuple[type, ...]] = {
    "base_name": (str,),
    "base_digest": (str,),
    "inputs": (dict,),
    "run": (str, type(None)),
    "digest": (str,),
    "stand_in_id": (int,),
    "task": (str, type(None)),
    "pairs": (bool, type(None)),
}
"""What each fact but the length may be."""


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
        for name, types in _TYPES.items():
            if type(value := getattr(facts, name)) not in types:
                raise FedmaskError(f"config.json: {SECTION}.{name} is {short(value)}; merge again")
        if type(facts.max_length) is not int or facts.max_length < 1:
            raise FedmaskError(f"config.json: {SECTION}.max_length is {facts.max_length!r}, no length; merge again")
        return facts
