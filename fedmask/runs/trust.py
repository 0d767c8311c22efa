"""A configuration that lies in a folder or file, and came from anybody perhaps: whether it would have code run.

In: the configuration, and whether a person has said to trust it. Out: nothing, or one line that says what would be run
and how to say yes. What a person writes on the command line needs no such word.
"""

from collections.abc import Iterator

from fedmask.errors import FedmaskError
from fedmask.runs.config import RunConfig
from fedmask.shown import shown
from fedmask.tasks import SOURCES

TRUST = "trust"
"""The argument by which a person says so."""


def check_trusted(config: RunConfig, where: str, is_trusted: bool) -> None:
    """where: the argument that names the configuration. Raises FedmaskError before anything of it is imported."""
    found = [] if is_trusted else list(code_of(config))
    if found:
        raise FedmaskError(
            f"{where}: its configuration runs code that may be somebody else's: {', and '.join(found)}; look at that, "
            f"and if you trust it, give {TRUST}=true as well"
        )


def code_of(config: RunConfig) -> Iterator[str]:
    """What is run that is no part of this project."""
    data = config.data
    if SOURCES[data.source].runs_code:
        yield f"data={data.source} runs {shown(data.tasks or 'its modules')} of {shown(data.root)}"
    if config.runtime == "ray" and config.ray.address is not None:
        yield f"ray.address={shown(config.ray.address)} has a cluster send Python objects to this process"
