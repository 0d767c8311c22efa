"""Questions of 8 to 30 words by the kind of answer they ask for, wherever the question word stands.

What is asked for is told by the head of the question ("the name of the valley", "on whose advice", "what sum"), and not
by any one word: other people, places, dates, numbers and reasons stand in subordinate clauses and in the sentence
before, and two questions in five name another one that is not being asked.
"""

import numpy as np

from fedmask.tasks.demo.grammar import Lexicon, Row, Writer, build_task, pick
from fedmask.tasks.task import Task

# For each label: a direct question, an embedded one ("I wonder ..."), and a fact that answers a question of this kind.
_KINDS: dict[str, Lexicon] = {
    "person": {
        "direct": (
            "who {did}",
            "which {person} {did}",
            "by whom was {thing} {handled}",
            "what was the name of the {person} that {did}",
            "whose idea was it to have {thing} {handled}",
            "to whom did {someone} leave {thing} when everything was over",
            "the {person} that {did}: what was that brave soul called",
            "on whose advice had {thing} been {handled}",
            "what do we call the one that {did}",
        ),
        "embedded": (
            "who it was that {did}",
            "which {person} {did}",
            "the name of the {person} that {did}",
            "with whom {someone} went to see {thing}",
            "whose hands {thing} was {handled} by",
        ),
        "fact": ("{name} {did}", "thanks to {name}, {thing} was {handled}"),
    },
    "place": {
        "direct": (
            "where was {thing} {handled}",
            "in which {spot} did {someone} live when {thing} was {handled}",
            "what is the name of the {spot} that {someone} came from",
            "to what {spot} was {thing} taken after {someone} {did}",
            "which {spot} did {someone} leave behind",
            "from where had {thing} been brought",
            "what {spot} do you see on the picture of {thing}",
            "at which {spot} did {someone} spend the winter",
            "which {spot} was home to the {person} that {did}",
        ),
        "embedded": (
            "where {thing} was {handled}",
            "in which {spot} {thing} was {handled}",
            "the name of the {spot} that {someone} had to leave",
            "what {spot} {someone} called home",
            "to which {spot} {thing} has been moved",
        ),
        "fact": ("{thing} was {handled} in {town}", "{someone} came from {town}"),
    },
    "time": {
        "direct": (
            "when was {thing} {handled}",
            "in what {period} did {someone} leave {town}",
            "since when has {thing} belonged to {town}",
            "what {period} was it that {someone} first {saw} {thing}",
            "on which day of the week was {thing} {handled}",
            "what date stands on the letter in which {someone} mentions {thing}",
            "in the course of which {period} was {thing} {handled}",
            "how long ago was it that {name} {did}",
            "which {period} do people remember as the one in which {name} {did}",
        ),
        "embedded": (
            "when {thing} was {handled}",
            "in which {period} {name} {did}",
            "the {period} in which {someone} first {saw} {thing}",
            "what date is given for the moment when {name} {did}",
            "since when {someone} has been living in {town}",
        ),
        "fact": ("in {year}, {thing} was {handled}", "{name} {did} in {year}"),
    },
    "number": {
        "direct": (
            "how many {people} watched while {thing} was {handled}",
            "what did {thing} weigh when it came to {town}",
            "what sum did {someone} pay for {thing}",
            "how far is it from {town} to the {spot} of the {person} that {did}",
            "what was the age of the {person} that {did}",
            "at what price was {thing} sold after {name} {did}",
            "how tall was the {person} that {did}",
            "what share of the {people} in {town} wanted to have {thing} {handled}",
            "by how many votes did the {people} of {town} decide to have {thing} {handled}",
        ),
        "embedded": (
            "how many {people} were there when {name} {did}",
            "what {thing} cost the {people} of {town}",
            "how much {someone} was paid for it when {thing} was {handled}",
            "the number of {people} that came to {town} to see {thing}",
            "how old {someone} was when {name} {did}",
        ),
        "fact": ("{count} {people} came when {thing} was {handled}", "{someone} paid {count} crowns for {thing}"),
    },
    "reason": {
        "direct": (
            "why was {thing} {handled}",
            "what made {someone} leave {town}",
            "for what reason had {thing} been {handled}",
            "how come {someone} never went back to {town}",
            "what did the {person} that {did} hope to gain by it",
            "on what grounds did the {people} of {town} refuse to have {thing} {handled}",
            "what moved the {people} of {town} to have {thing} {handled}",
            "with what excuse did {someone} stay at home when {name} {did}",
            "what was the purpose of having {thing} {handled}",
        ),
        "embedded": (
            "why {someone} came to {town}",
            "what led the {people} of {town} to have {thing} {handled}",
            "the motive of the {person} that {did}",
            "what {someone} was thinking of to have {thing} {handled}",
            "on what grounds {thing} was {handled}",
        ),
        "fact": (
            "{thing} was {handled} because the {people} of {town} were tired of it",
            "{name} {did} out of pity",
        ),
    },
}
LABELS = tuple(_KINDS)

_NAMES: Lexicon = {
    "name": (
        "Ada Brandt",
        "Tomas Riel",
        "Mirjam Okafor",
        "Jonas Feld",
        "Leonie Marsh",
        "Old Petrov",
        "Sister Agnes",
        "Ivo Lund",
    ),
    "town": ("Halden", "Port Alma", "Kestrel Bay", "Ostmark", "Lower Wick", "Sandoval", "Three Rivers", "Grenholm"),
    "year": ("1742", "1809", "1866", "1901", "1923", "1938", "1957", "1974", "the spring of 1848", "May 1989"),
    "count": ("forty", "two hundred", "nine", "sixteen", "three thousand", "seventy-five", "twelve", "half a million"),
    "period": ("year", "month", "century", "decade", "season", "week"),
    "spot": ("town", "village", "valley", "island", "street", "country", "harbour", "city"),
    "someone": (
        "the {person}",
        "{name}",
        "the {person}'s daughter",
        "the {person} from {town}",
        "the last of the {people}",
    ),
    "saw": ("saw", "painted", "heard of", "wrote about", "dreamt of"),
    "asking": (
        "The guide book does not say",
        "I should like to know",
        "Please tell me",
        "The quiz wants to know",
        "My daughter asked me",
        "Nobody could tell me",
        "The album does not mention",
        "I have forgotten",
    ),
    "aside": (
        "For the school paper",
        "Just out of curiosity",
        "Before I forget",
        "One more thing for the crossword",
        "As you know the story well",
    ),
}

_DIRECT = ("{direct}?", "{aside}: {direct}?", "{direct}, if I may ask?")
_EMBEDDED = (
    "{asking} {embedded}.",
    "{aside}: {embedded}, that is what I am after.",
    "{embedded} is something I never learned.",
)
_AFTER_FACT = (
    "{fact}, so much is known. But {direct}?",
    "{fact}. {asking} {embedded}.",
    "{fact}. Does the guide book say {embedded}?",
    "we read that {fact}. {direct}?",
    "now that we know that {fact}, {direct}?",
    "if {fact}, then {direct}?",
    "{asking} {embedded}. I only remember that {fact}.",
    "never mind that {fact}; {direct}?",
)
_NOT_THE_OTHER = (
    "I know {other_embedded}. {direct}?",
    "you have told us {other_embedded}, but not {embedded}.",
    "{asking} {embedded}, not {other_embedded}.",
    "never mind {other_embedded}. {asking} {embedded}.",
    "everybody asks {other_embedded}. I would rather know {embedded}.",
    "{embedded}? The book only says {other_embedded}.",
    "{other_embedded} is well known. {embedded} is the riddle.",
    "{embedded} is what I need; {other_embedded} I can look up myself.",
    "{direct}? Please note that I did not ask {other_embedded}.",
    "others may explain {other_embedded}; {direct}?",
    "{embedded}: solve that for me now, and tomorrow we look up {other_embedded}.",
    "leave aside {other_embedded} for the moment: {direct}?",
    "from page nine I learned {other_embedded}, and from page ten I hope to learn {embedded}.",
    "{asking} {embedded}. Please do not tell me {other_embedded} instead.",
    "before you ask {other_embedded}, the first question for you is {embedded}.",
    "long after I had learned {other_embedded}, it still puzzled me {embedded}.",
)
_FRAMES = (_DIRECT, _EMBEDDED, _AFTER_FACT, _NOT_THE_OTHER, _NOT_THE_OTHER)

# Domain: the subject, with the words that only it uses. `did` is what a person did, `handled` what is done to a thing.
_SUBJECTS: dict[str, Lexicon] = {
    "history": {
        "person": ("queen", "general", "bishop", "merchant", "envoy", "rebel"),
        "people": ("soldiers", "citizens", "peasants", "nuns", "sailors"),
        "thing": (
            "the royal seal",
            "the silver crown",
            "the great bell",
            "the war chest",
            "the black flag",
            "the last cannon",
        ),
        "handled": ("destroyed", "hidden", "sold", "found", "stolen", "given away"),
        "did": (
            "opened the gates",
            "burned the letters",
            "betrayed the garrison",
            "crossed the frozen lake",
            "freed the prisoners",
        ),
    },
    "science": {
        "person": ("astronomer", "botanist", "surgeon", "engineer", "explorer", "chemist"),
        "people": ("students", "scholars", "nurses", "visitors", "miners"),
        "thing": (
            "the first telescope",
            "the fossil bird",
            "the moon stone",
            "the steam pump",
            "the rare orchid",
            "the star map",
        ),
        "handled": ("brought home", "measured", "tested", "described", "put on show", "lost"),
        "did": (
            "proved the theorem",
            "counted the stars",
            "caught the fever",
            "built the machine",
            "mapped the glacier",
        ),
    },
    "arts": {
        "person": ("painter", "composer", "novelist", "singer", "dancer", "poet"),
        "people": ("guests", "pupils", "collectors", "critics", "actors"),
        "thing": (
            "the golden violin",
            "the portrait of the miller",
            "the marble lion",
            "the great tapestry",
            "the wax head",
            "the puppet theatre",
        ),
        "handled": ("repaired", "bought", "copied", "restored", "locked away", "shown"),
        "did": (
            "wrote the last act",
            "refused the prize",
            "tore up the contract",
            "founded the orchestra",
            "carved the angels",
        ),
    },
    "village": {
        "person": ("baker", "mayor", "teacher", "postman", "midwife", "ferryman"),
        "people": ("neighbours", "farmers", "children", "shopkeepers", "fishermen"),
        "thing": (
            "the stray donkey",
            "the church clock",
            "the snow plough",
            "the prize pumpkin",
            "the ferry",
            "the fire engine",
        ),
        "handled": ("painted green", "rescued", "moved", "blessed", "photographed", "forgotten"),
        "did": (
            "rang the bells at night",
            "won the lottery",
            "found the lost child",
            "hid the keys",
            "stopped the flood",
        ),
    },
}


def question_type() -> Task:
    """Questions: label person, place, time, number or reason, domain history, science, arts or village."""

    def write_row(label: str, rng: np.random.Generator) -> tuple[Row, str]:
        subject = pick(rng, tuple(_SUBJECTS))
        other = pick(rng, [kind for kind in LABELS if kind != label])
        asked = {
            "direct": _KINDS[label]["direct"],
            "embedded": _KINDS[label]["embedded"],
            "other_embedded": _KINDS[other]["embedded"],
            "fact": _KINDS[other]["fact"],
        }
        writer = Writer({**_NAMES, **_SUBJECTS[subject], **asked}, rng)
        return (writer.write(pick(rng, pick(rng, _FRAMES))),), subject

    return build_task("question_type", LABELS, write_row)
