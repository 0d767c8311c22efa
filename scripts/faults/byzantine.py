"""Clients that send a multiple of their update in place of it, beside the same run in which none does.

Without protection, with updates clipped to a norm, with the trimmed mean and the median of each task's clients.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flwr.app import Message

from faults.malformed import rewrite
from faults.outcome import Outcome, Settings
from faults.runs import LONG, MOST_POINTS, SCORED, Change, finished_run, is_train, points_below
from faults.undisturbed import norms_of, undisturbed
from faults.updates import payload_with, vectors_of
from fedmask.errors import FedmaskError
from fedmask.runs.config import RunConfig
from fedmask.wire.messages import payload_of
from server.compose import compose

FACTORS = {"its update x 100": 100.0, "its update's negative": -1.0}
UNPROTECTED, CLIPPED, TRIMMED, MEDIAN = "none", "clip_norm", "trimmed_mean", "median"
JUDGED = (CLIPPED, TRIMMED)
"""Protections that must hold; the others inform."""


def times(factor: float, number: int) -> Change:
    """The first `number` clients send so many times their update, all its vectors."""

    def change(client_id: int, request: Message, reply: Message) -> Message:
        if client_id < number and is_train(request):
            vectors = vectors_of(payload_of(reply.content))
            rewrite(reply, payload_with(replace(each, values=each.values * factor) for each in vectors))
        return reply

    return change


def byzantine(number: int, settings: Settings) -> Outcome:
    """`number` clients attack, in every round. Raises FedmaskError where none would be left."""
    _check(compose([*LONG, *settings.overrides]), number)
    without = undisturbed(settings)
    whole, limit = without.summary["score"], norms_of(settings).median()
    rows, below = [("none", UNPROTECTED, *_shown(whole, whole), "")], dict[tuple[str, str], float]()
    for attack, factor in FACTORS.items():
        for protection, overrides in _protections(limit).items():
            settings.say(f"byzantine: {number} of {without.config.clients} send {attack}, protection: {protection}")
            folder = settings.output / "runs" / f"byzantine-{number}-x{factor:g}-{protection}"
            run = finished_run(folder, [*LONG, *settings.overrides, *overrides], times(factor, number))
            scores = run.summary["score"]
            below[(attack, protection)] = points_below(scores, whole)
            rows.append((attack, protection, *_shown(scores, whole), f"{-below[(attack, protection)]:+.1f}"))
    judged, unprotected = (
        max(points for (_, protection), points in below.items() if protection in which)
        for which in (JUDGED, (UNPROTECTED,))
    )
    return Outcome(
        title="Clients that attack",
        limit=f"{SCORED}, of the run without an attack, with clip_norm and with trimmed_mean",
        figure=f"{number} of {without.config.clients} clients attack: {judged:.1f} points below where it is "
        f"worst with clip_norm or trimmed_mean, {unprotected:.1f} without protection",
        passed=judged <= MOST_POINTS,
        columns=("what the attacker sends", "server's protection", *whole, "points, worst task"),
        rows=tuple(rows),
        notes=tuple(_notes(number, without.config, limit)),
    )


def _check(config: RunConfig, number: int) -> None:
    if number >= config.clients:
        raise FedmaskError(f"byzantine={number}: must be fewer than clients={config.clients}")


def _protections(limit: float) -> dict[str, tuple[str, ...]]:
    """Overrides by name."""
    return {
        UNPROTECTED: (),
        CLIPPED: (f"server.clip_norm={limit:.6g}",),
        TRIMMED: ("server.combine=trimmed_mean",),
        MEDIAN: ("server.combine=median",),
    }


def _shown(scores: Mapping[str, float], tasks: Iterable[str]) -> list[str]:
    return [f"{scores[task]:.3f}" for task in tasks]


def _notes(number: int, config: RunConfig, limit: float) -> list[str]:
    who = "Client 0 attacks" if number == 1 else f"Clients 0 to {number - 1} attack"
    return [
        f"{who} in each of {config.rounds} rounds; the same seed throughout. The run without an attack has the plain "
        f"mean of all {config.clients} clients. clip_norm is {limit:.4g}, the median norm of all updates of that run. "
        "Test scores after the last round; one seed. The median informs, and is not judged.",
    ]
