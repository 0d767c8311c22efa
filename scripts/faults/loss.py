"""Replies that are lost at random, beside the same run without loss: test scores by task."""

from collections import Counter

import numpy as np
from flwr.app import Message

from faults.outcome import Outcome, Settings
from faults.runs import LONG, MOST_POINTS, SCORED, finished_run, points_below, round_of
from faults.undisturbed import undisturbed
from fedmask.randomness import seed_for
from fedmask.wire.messages import facts_of


class Losing:
    """Loses every reply of the rounds with one probability; of the last scoring, on the test split, none."""

    def __init__(self, probability: float, seed: int) -> None:
        self._probability, self._seed = probability, seed
        self._asked = Counter[tuple[int, int, str]]()

    def __call__(self, client_id: int, request: Message, reply: Message) -> Message | None:
        kind = request.metadata.message_type
        if kind not in ("train", "evaluate") or facts_of(request.content).get("split") == "test":
            return reply
        place = round_of(request), client_id, kind
        self._asked[place] += 1  # a round that is repeated does not lose the same replies again
        generator = np.random.default_rng(seed_for(self._seed, "loss", *place, self._asked[place]))
        return None if generator.random() < self._probability else reply


def loss(probability: float, settings: Settings) -> Outcome:
    """Lose replies with this probability, for all rounds."""
    without = undisturbed(settings)
    settings.say(f"loss: {without.config.rounds} rounds, replies lost with probability {probability:g}")
    losing = Losing(probability, without.config.seed)
    folder = settings.output / "runs" / f"lost-{probability:g}"
    run = finished_run(folder, [*LONG, *settings.overrides], losing)
    scores, whole = run.summary["score"], without.summary["score"]
    below = points_below(scores, whole)
    lost = sum(line["failure_causes"].get("no-reply", 0) for line in run.rounds)
    return Outcome(
        title="Lost replies",
        limit=f"{SCORED}, of the run without loss",
        figure=f"{lost} replies lost in {len(run.rounds)} rounds: {below:.1f} points below where it is worst",
        passed=below <= MOST_POINTS,
        columns=("task", "without loss", "with loss", "points"),
        rows=tuple(
            (task, f"{whole[task]:.3f}", f"{scores[task]:.3f}", f"{100 * (scores[task] - whole[task]):+.1f}")
            for task in whole
        ),
        notes=(
            f"Each reply to a training or validation message is lost with probability {probability:g}, drawn by seed, "
            "round and client; the same seed otherwise. A round in which none arrives is repeated. Test scores after "
            "the last round; one seed.",
        ),
    )
