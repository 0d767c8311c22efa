"""Pairs of news in brief, each sentence of 8 to 30 words: do both say that the same thing happened?

An event has several wordings that mean the same (active and passive, converse verbs, another order of clauses) and
wordings that deny it. An equivalent pair is two wordings, or two denials, of one event. In a different pair the second
sentence denies the event, swaps its two people, or changes its object or its figure (a number, a day), and keeps all
the rest.
"""

import re

import numpy as np

from fedmask.tasks.demo.grammar import Lexicon, Row, Writer, build_task, pick
from fedmask.tasks.task import Task

LABELS = ("different", "equivalent")


# Roles: name#1 acts on name#2; thing#1 (game, town, art) is the object, count#1 or day#1 the figure.
_SALE: Lexicon = {
    "told": (
        "{name#1} sold {thing#1} to {name#2} for {count#1} crowns",
        "{name#2} bought {thing#1} from {name#1} for {count#1} crowns",
        "{name#2} paid {name#1} the sum of {count#1} crowns for {thing#1}",
        "for {count#1} crowns, {thing#1} was sold to {name#2} by {name#1}",
        "{name#1} let {name#2} have {thing#1} for {count#1} crowns",
    ),
    "denied": (
        "{name#1} refused to sell {thing#1} to {name#2} for {count#1} crowns",
        "{name#2} did not buy {thing#1} from {name#1} for {count#1} crowns",
        "{name#1} kept {thing#1}, although {name#2} had offered {count#1} crowns",
    ),
}
_LOAN: Lexicon = {
    "told": (
        "{name#1} lent {thing#1} to {name#2} for {count#1} weeks",
        "{name#2} borrowed {thing#1} from {name#1} for {count#1} weeks",
        "for {count#1} weeks, {name#2} may use {thing#1} that belongs to {name#1}",
        "{thing#1} is on loan from {name#1} to {name#2} for {count#1} weeks",
    ),
    "denied": (
        "{name#1} would not lend {thing#1} to {name#2} for {count#1} weeks",
        "{name#2} asked {name#1} in vain for {thing#1} for {count#1} weeks",
        "{name#2} never got {thing#1} from {name#1} for those {count#1} weeks",
    ),
}
_CONTEST: Lexicon = {
    "told": (
        "{name#1} beat {name#2} in the {game#1} last {day#1}",
        "last {day#1} {name#2} lost the {game#1} to {name#1}",
        "the {game#1} last {day#1} was won by {name#1}, ahead of {name#2}",
        "{name#2} came second to {name#1} in the {game#1} last {day#1}",
        "last {day#1} {name#1} took first place in the {game#1} before {name#2}",
    ),
    "denied": (
        "{name#1} failed to beat {name#2} in the {game#1} last {day#1}",
        "last {day#1} {name#1} did not win the {game#1} against {name#2}",
        "there was no victory for {name#1} over {name#2} in the {game#1} last {day#1}",
    ),
}
_JOURNEY: Lexicon = {
    "told": (
        "{name#1} went to {town#1} last {day#1} to see {name#2}",
        "last {day#1} {name#2} had a visit in {town#1} from {name#1}",
        "{name#1} called on {name#2} in {town#1} last {day#1}",
        "in {town#1}, {name#2} received {name#1} as a guest last {day#1}",
    ),
    "denied": (
        "{name#1} cancelled the visit to {name#2} in {town#1} last {day#1}",
        "last {day#1} {name#2} waited in {town#1} for {name#1} in vain",
        "{name#1} did not go to see {name#2} in {town#1} last {day#1}",
    ),
}
_LESSON: Lexicon = {
    "told": (
        "{name#1} has taught {name#2} the {art#1} since last {day#1}",
        "since last {day#1}, {name#2} has had lessons in the {art#1} from {name#1}",
        "{name#2} has been learning the {art#1} from {name#1} since last {day#1}",
        "lessons in the {art#1} have been given to {name#2} by {name#1} since last {day#1}",
    ),
    "denied": (
        "{name#1} declined to teach {name#2} the {art#1} last {day#1}",
        "last {day#1} {name#2} gave up the plan to learn the {art#1} from {name#1}",
        "the lessons in the {art#1} that {name#1} promised {name#2} last {day#1} never took place",
    ),
}
# Domain: the kind of event.
_EVENTS: dict[str, Lexicon] = {
    "trade": _SALE,
    "neighbours": _LOAN,
    "sport": _CONTEST,
    "travel": _JOURNEY,
    "school": _LESSON,
}

_WORDS: Lexicon = {
    "name": (
        "Anton",
        "Birgit",
        "Carlos",
        "Dalia",
        "Erik",
        "Fatima",
        "Greta",
        "Hugo",
        "Irina",
        "Jamal",
        "Karin",
        "Luis",
    ),
    "thing": (
        "the red tractor",
        "the sailing boat",
        "a wooden ladder",
        "the grey pony",
        "a sewing machine",
        "the beehive",
        "a snow shovel",
        "the wedding tent",
        "the old piano",
    ),
    "count": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "night", "spring"),
    "town": ("Halden", "Lisbon", "Oslo", "Vienna", "Dublin", "Turin", "Krakow"),
    "game": ("chess final", "sack race", "darts match", "spelling contest", "pie contest", "swimming gala", "pub quiz"),
    "art": ("violin", "tango", "art of baking", "trumpet", "Greek alphabet", "craft of weaving", "game of bridge"),
}
# How the second sentence of a different pair differs, by weight.
_CHANGES = ("denial",) * 6 + ("object",) * 2 + ("figure", "people")
_SLOTS_CHANGED = {"object": ("thing", "game", "town", "art"), "figure": ("count", "day")}

_OPENINGS = ("",) * 12 + (
    "it seems that ",
    "we hear that ",
    "I read that ",
    "as it happens, ",
    "word has it that ",
    "in brief: ",
    "the mayor says that ",
    "it is a fact that ",
)


def paraphrase() -> Task:
    """Pairs: label different or equivalent, scored by F1 of equivalent, domain the kind of event."""

    def write_row(label: str, rng: np.random.Generator) -> tuple[Row, str]:
        domain = pick(rng, tuple(_EVENTS))
        first, second = _pair_of_templates(_EVENTS[domain], label, rng)
        openings = pick(rng, _OPENINGS), pick(rng, _OPENINGS)
        return Writer(_WORDS, rng).write_together(openings[0] + first + ".", openings[1] + second + "."), domain

    return build_task("paraphrase", LABELS, write_row, metric="f1")


def _pair_of_templates(event: Lexicon, label: str, rng: np.random.Generator) -> tuple[str, str]:
    """Two wordings of the event, with the same numbered slots but for what a different pair changes."""
    first_form = pick(rng, ("told", "told", "told", "told", "told", "denied"))
    first = pick(rng, event[first_form])
    others = tuple(wording for wording in event[first_form] if wording != first)
    if label == "equivalent":
        return first, pick(rng, others)
    change = pick(rng, _CHANGES)
    if change == "denial":
        return first, pick(rng, event["denied" if first_form == "told" else "told"])
    second = pick(rng, others)
    if change == "people":
        return first, re.sub(r"name#([12])", lambda role: f"name#{3 - int(role[1])}", second)
    for slot in _SLOTS_CHANGED[change]:
        second = second.replace(f"{{{slot}#1}}", f"{{{slot}#2}}")
    return first, second
