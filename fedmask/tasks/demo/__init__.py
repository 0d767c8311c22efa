"""The embedded demo: five tasks of generated English over five fields of life, offline and the same on every machine.

Out: `DEMO_TASKS`, task name -> function building the `Task` (1,200 / 200 / 400 distinct texts, labels balanced). In
every task the label hangs on how a sentence is put together (negation, contrast, what is asked or done to whom) and
less on which words it holds, so that a frozen encoder with a trained head leaves something to be learned.
"""

from collections.abc import Callable, Mapping, Sequence

from fedmask.tasks import Reading, Stamp
from fedmask.tasks.demo.films import film_reviews
from fedmask.tasks.demo.kitchen import kitchen_reviews
from fedmask.tasks.demo.paraphrases import paraphrase
from fedmask.tasks.demo.questions import question_type
from fedmask.tasks.demo.topics import topic
from fedmask.tasks.task import Task, unknown_task

__all__ = ["DEMO_TASKS", "load", "stamp"]

DEMO_TASKS: Mapping[str, Callable[[], Task]] = {
    "film_reviews": film_reviews,
    "kitchen_reviews": kitchen_reviews,
    "question_type": question_type,
    "topic": topic,
    "paraphrase": paraphrase,
}


def load(root: str | None, names: Sequence[str] | None, reading: Reading) -> tuple[Task, ...]:
    """The demo's tasks `names`, all where None. Raises FedmaskError for one that it has not."""
    for name in names or ():
        if name not in DEMO_TASKS:
            raise unknown_task(name, DEMO_TASKS, "the demo")
    chosen = DEMO_TASKS if names is None else names
    return tuple(DEMO_TASKS[name]().with_classes(reading.classes) for name in chosen)


def stamp(root: str | None, names: Sequence[str] | None) -> Stamp:
    """Of no file."""
    return {}
