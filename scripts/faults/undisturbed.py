"""The run that loss and byzantine are held against, and how long its clients' updates were."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from flwr.app import Message

from faults.outcome import Settings
from faults.runs import LONG, Finished, finished_run, is_train, round_of
from faults.updates import vectors_of
from fedmask.aggregation import l2_norm
from fedmask.errors import FedmaskError
from fedmask.wire.messages import payload_of


@dataclass(frozen=True)
class Norms:
    """L2 norms of all updates, a line each as they come; a round that is done again says the same again."""

    path: Path

    def note(self, client_id: int, request: Message, reply: Message) -> Message:
        if is_train(request):
            norm = l2_norm([vector.values for vector in vectors_of(payload_of(reply.content))])
            with self.path.open("a") as file:
                file.write(json.dumps({"round": round_of(request), "client": client_id, "norm": norm}) + "\n")
        return reply

    def median(self) -> float:
        """Raises FedmaskError where none were noted."""
        if not self.path.exists():
            raise FedmaskError(f"{self.path}: there is no such file; remove the folder of the same name, too")
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return median({(line["round"], line["client"]): line["norm"] for line in lines}.values())


def undisturbed(settings: Settings) -> Finished:
    """The run itself."""
    settings.say("the run that nothing disturbs")
    norms = norms_of(settings)
    norms.path.parent.mkdir(parents=True, exist_ok=True)
    return finished_run(norms.path.with_suffix(""), [*LONG, *settings.overrides], norms.note)


def norms_of(settings: Settings) -> Norms:
    return Norms(settings.output / "runs" / "undisturbed.jsonl")
