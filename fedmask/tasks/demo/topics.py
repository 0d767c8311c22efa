"""Short messages of 8 to 30 words by topic: the topic is what the message is for, not where its writer happens to be.

Most messages hold two topics: the errand (`{errand}`) of the label's topic, and the setting (`{setting}`) of another,
told in passing. The topics share words on purpose: bank, match, pitch, court, note, spring, current, record, run, bar.
"""

import numpy as np

from fedmask.tasks.demo.grammar import Lexicon, Row, Writer, build_task, pick
from fedmask.tasks.task import Task

# For each topic: full clauses that are the message, participles and prepositional phrases that only set its scene, and
# noun phrases for what the message is not about.
_TOPICS: dict[str, Lexicon] = {
    "money": {
        "errand": (
            "the bank {wants} the papers for the loan by {day}",
            "I still owe you {sum} from {day}",
            "somebody has to transfer {sum} to the joint account",
            "the landlord is raising the rent by {sum}",
            "our shares have lost half of their value since {day}",
            "the tax office {wants} every receipt by {day}",
            "the interest on our savings has gone up again",
            "the bill is wrong, they charged us {sum} too much",
            "we must stick to the budget until {day}",
            "the insurance refuses to pay {sum}",
            "my card was declined and I need {sum} in cash",
        ),
        "setting": (
            "waiting in line at the bank",
            "on the steps of the tax office",
            "on the way to the cash machine",
            "at our accountant's desk",
            "in the middle of an auction",
        ),
        "matter": ("the loan", "the rent", "your bill", "the shares", "my salary"),
    },
    "nature": {
        "errand": (
            "there were {few} otters playing on the river bank",
            "the first swallows came back on {day}",
            "a young seal lay sleeping on the rocks",
            "the old chestnut has lost its biggest branch in the gale",
            "we counted {few} bats leaving the hollow oak",
            "the wild garlic is out along the stream",
            "{few} cranes flew over in a long line",
            "the spring behind the hill has run dry",
            "the current has washed {few} jellyfish ashore",
            "the fox has moved her cubs under the fallen trunk",
            "the moor turned purple with heather by {day}",
        ),
        "setting": (
            "sitting on the river bank",
            "with mud on my boots from the moor",
            "on a walk along the cliffs",
            "under a sky full of cranes",
            "out counting butterflies in the meadow",
        ),
        "matter": ("the otters", "the old chestnut", "the bats", "the wild garlic", "the seals"),
    },
    "sport": {
        "errand": (
            "we won the match by {few} goals",
            "the coach wants me on the left wing on {day}",
            "she broke the club record over a mile",
            "the pitch was frozen, so the game is off until {day}",
            "somebody has to stand in as our goalkeeper on {day}",
            "he returned {few} serves in a row and took the set",
            "our team has dropped to the bottom of the league",
            "training starts an hour earlier on {day}",
            "the referee sent off {few} of our players",
            "the relay team is one runner short for {day}",
            "they have booked the tennis court for us on {day}",
        ),
        "setting": (
            "still in my running shoes",
            "in the stands of the stadium",
            "on the bus to the cup final",
            "in the half-time break",
            "on the bench beside the pitch",
        ),
        "matter": ("the match", "the league", "the relay", "the training", "the goalkeeper"),
    },
    "health": {
        "errand": (
            "the doctor wants to see my knee again on {day}",
            "you have to take the drops twice a day until {day}",
            "my temperature has been up since {day}",
            "the nurse will change the bandage on {day}",
            "the dentist had to pull {few} teeth",
            "the blood test came back without any findings",
            "my back hurts whenever I bend down",
            "the rash on her arm is spreading",
            "the ward allows {few} visitors until {day}",
            "I have been coughing since {day} and cannot sleep",
            "the chemist was out of my tablets until {day}",
        ),
        "setting": (
            "in the waiting room of the clinic",
            "with a thermometer under my tongue",
            "in the corridor of the ward",
            "in bed with a cold",
            "on the way home from the dentist",
        ),
        "matter": ("my knee", "the drops", "the blood test", "the rash", "the cough"),
    },
    "music": {
        "errand": (
            "the choir needs {few} more basses by {day}",
            "the band has a new drummer since {day}",
            "that high note in the last bar is still flat",
            "she has written a song in a minor key",
            "our quartet plays the slow movement on {day}",
            "somebody has to tune the piano before {day}",
            "his new record has {few} tracks and not one refrain",
            "the violins came in {few} bars too early",
            "they have moved the concert to {day}",
            "the pitch of the organ drops when it is cold",
            "I have learned {few} chords on the guitar",
        ),
        "setting": (
            "between two songs at the rehearsal",
            "with my headphones on",
            "in the interval of the concert",
            "behind the stage with the orchestra",
            "carrying my cello up the stairs",
        ),
        "matter": ("the choir", "the concert", "the new record", "the piano", "the song"),
    },
}
LABELS = tuple(_TOPICS)

_WORDS: Lexicon = {
    "wants": ("wants", "needs", "has asked for", "is waiting for"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "the first of May"),
    "sum": ("twenty crowns", "a hundred", "three hundred", "fifty", "a month's wages"),
    "few": ("two", "three", "four", "seven", "a dozen"),
    "aside_from": ("leaving aside that", "apart from the fact that", "ignoring that"),
    "granted": ("I know that", "I am aware that", "it is true that", "of course"),
    "heard": ("you will have heard that", "everybody tells you that", "rumour has it that"),
    "leave": ("never mind", "let us forget", "not a word about"),
    "however": ("All the same", "Even so", "Still", "But first things first"),
    "to_the_point": ("In short", "What I really wanted to say", "To come to the point", "Listen", "The news is this"),
}

_PLAIN = (
    "{hello}, {errand}. {close}.",
    "{hello}, {errand#1}, and {errand#2}.",
    "{errand#1}, and {errand#2}. {close}.",
)
_SETTING = (
    "{hello}, I am writing this {other_setting}: {errand}.",
    "{other_setting}, I got word that {errand}. {close}.",
    "{errand}. I only heard of it {other_setting}. {close}.",
    "{hello}, {errand}. Sorry for the typing, I am {other_setting}.",
    "I thought of it {other_setting}: {errand}.",
    "{hello}, picture me {other_setting}. {to_the_point}: {errand}.",
)
_NOT_THE_OTHER = (
    "{hello}, this is not about {other_matter}. {errand}.",
    "{leave} {other_matter} for now; {errand}. {close}.",
    "you asked about {other_matter}. That can wait: {errand}.",
    "{errand}. We can talk about {other_matter} another time. {close}.",
)
_WEIGHED = (
    "{hello}, forget that {other_errand}. {to_the_point}: {errand}.",
    "{granted} {other_errand}. {however}, I am writing because {errand}.",
    "{errand}, and that matters more today than that {other_errand}.",
    "{hello}, {errand}. Compared with that, who cares that {other_errand}?",
    "{other_errand}, but you will know that already. {to_the_point}: {errand}.",
    "{heard} {other_errand}. What nobody told you is that {errand}.",
    "{hello}, {errand}. That is all I have to say, except in passing that {other_errand}.",
    "{aside_from} {other_errand}, {errand}. {close}.",
    "{hello}, if you think that I write because {other_errand}, think again: {errand}.",
    "the day began with the news that {other_errand}, but that was soon forgotten, for {errand}.",
    "{errand}. Father keeps telling me that {other_errand}, as if that mattered.",
    "{errand}. In your last message you said that {other_errand}; I shall answer that later.",
    "while it may be true that {other_errand}, it is quite another thing that brings me here: {errand}.",
    "rather than tell you once more that {other_errand}, I had better say it plainly: {errand}.",
    "{hello}, {errand}, and please do not change the subject by telling me that {other_errand}.",
    "yesterday the great event was that {other_errand}. Today it is that {errand}.",
    "{errand}: that is my news, and not that {other_errand}, as you might think.",
)
_FRAMES = (_PLAIN, _SETTING, _NOT_THE_OTHER, _WEIGHED, _WEIGHED, _WEIGHED)

# Domain: whom the message is for.
_CIRCLES: dict[str, Lexicon] = {
    "family": {
        "hello": ("Dear Mum", "Hello Grandpa", "Hi little brother", "Dear Aunt Ruth", "Darling"),
        "close": ("Love, Nell", "Kiss the children", "Father sends his love", "See you at supper"),
    },
    "friends": {
        "hello": ("Hey Sam", "Hi Jo", "Hello you two", "Morning, sleepyhead", "Hi everybody"),
        "close": ("Cheers, Ben", "More over a beer", "Miss you", "Thought you should know"),
    },
    "colleagues": {
        "hello": ("Dear Mr Olsen", "Good morning", "Dear colleagues", "Hello Ms Adeyemi", "To the whole office"),
        "close": ("Kind regards", "Please pass it on", "Back at my desk soon", "Thank you for your patience"),
    },
}


def topic() -> Task:
    """Short messages: label money, nature, sport, health or music, domain family, friends or colleagues."""

    def write_row(label: str, rng: np.random.Generator) -> tuple[Row, str]:
        circle = pick(rng, tuple(_CIRCLES))
        other = _TOPICS[pick(rng, [name for name in LABELS if name != label])]
        passing = {f"other_{slot}": entries for slot, entries in other.items()}
        writer = Writer({**_WORDS, **_CIRCLES[circle], **_TOPICS[label], **passing}, rng)
        return (writer.write(pick(rng, pick(rng, _FRAMES))),), circle

    return build_task("topic", LABELS, write_row)
