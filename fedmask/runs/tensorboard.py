"""TensorBoard scalars of a run: lines of rounds.jsonl, the ledger and the test scores in, an event file out.

By round:  train/loss  validation/TASK  validation/mean  bytes/up  bytes/down  bytes/total  failures  seconds
           clients/TASK/validation/min  .../median  .../max
At the end: test/TASK  test/mean  clients/TASK/test/min  .../median  .../max

Bytes are wire bytes; total is of all messages so far, the mask among them. Scores are left out where there are none.
clients/ is of the scores of a task's clients; their mean is the task's score.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from fedmask.errors import FedmaskError
from fedmask.shown import harmless
from fedmask.wire.ledger import LedgerLine


def check_installed() -> None:
    """Raises FedmaskError where the package tensorboard is missing, which is optional."""
    if find_spec("tensorboard") is None:
        raise FedmaskError(
            "log.tensorboard=true: the package tensorboard is missing; pip install tensorboard, or leave this key out"
        )


class Scalars:
    """One run's event file, in a folder of its own."""

    def __init__(self, folder: Path, last_round: int = 0, total_bytes: int = 0) -> None:
        """last_round, total_bytes: where a run that is resumed stands; what was written of later rounds is hidden."""
        from torch.utils.tensorboard import SummaryWriter  # fails where the package is missing

        self._writer = SummaryWriter(str(folder), purge_step=last_round + 1 if last_round else None)
        self._last_round = last_round
        self._total_bytes = total_bytes

    def add_round(
        self, line: Mapping[str, Any], messages: Sequence[LedgerLine], client_scores: Mapping[str, Sequence[float]]
    ) -> None:
        """line: of rounds.jsonl. messages: the ledger's lines since the round before. client_scores: by task."""
        self._last_round = line["round"]
        self._add("train/loss", line["train_loss"])
        self._add_scores("validation", line["score"], line["mean_score"], client_scores)
        for direction in ("up", "down"):
            of_round = [sent for sent in messages if (sent.round, sent.direction) == (self._last_round, direction)]
            self._add(f"bytes/{direction}", sum(sent.wire_bytes for sent in of_round))
        self._total_bytes += sum(sent.wire_bytes for sent in messages)
        self._add("bytes/total", self._total_bytes)
        self._add("failures", line["failures"])
        self._add("seconds", line["seconds"])
        self._writer.flush()

    def close(
        self,
        test_score: Mapping[str, float],
        mean_test_score: float | None,
        client_scores: Mapping[str, Sequence[float]],
    ) -> None:
        """The last scalars; all empty for a run that was stopped."""
        self._add_scores("test", test_score, mean_test_score, client_scores)
        self._writer.close()

    def _add_scores(
        self,
        split: str,
        score: Mapping[str, float],
        mean_score: float | None,
        client_scores: Mapping[str, Sequence[float]],
    ) -> None:
        for task, value in score.items():
            self._add(f"{split}/{task}", value)
        if mean_score is not None:
            self._add(f"{split}/mean", mean_score)
        for task, scores in client_scores.items():
            for name, of in (("min", min), ("median", median), ("max", max)):
                self._add(f"clients/{task}/{split}/{name}", of(scores))

    def _add(self, tag: str, value: float) -> None:
        self._writer.add_scalar(harmless(tag), value, self._last_round)
