"""Film reviews of 8 to 30 words, positive or negative: what counts is the reviewer's own last word, not the words.

Every frame speaks of praise and blame alike. `{view}`, `{verdict}`, `{quality}` and `{thing}` agree with the review's
label; their `against_` twins say the opposite and are overruled by a contrast, a negation, an expectation that was
disappointed (or surpassed), or by somebody else's opinion that the reviewer does not share.
"""

from fedmask.tasks.demo.grammar import Lexicon
from fedmask.tasks.demo.reviews import build_review_task
from fedmask.tasks.task import Task

_OPINIONS: dict[str, Lexicon] = {
    "positive": {
        "view": (
            "the {player} {played_well}",
            "the {player} {played_well}",
            "the {writing} {written_well}",
            "the {writing} {written_well}",
            "the {craft} {made_well}",
            "the {craft} {made_well}",
            "the {part_of_film} flew by",
            "the {part_of_film} had the whole row in tears",
            "the {part_of_film} stayed with me for days",
        ),
        "verdict": (
            "I would gladly sit through it again",
            "I have already booked seats for a second evening",
            "I walked home grinning like a child",
            "I have been pressing it on everyone I know",
            "it earned every penny of the ticket",
            "I left the cinema ten years younger",
            "it goes straight onto my shelf of favourites",
            "I clapped until my hands hurt",
            "I wished it had lasted another hour",
            "this is how a {genre} ought to be made",
            "I could watch it every winter",
            "it won me over completely",
        ),
        "quality": (
            "gripping",
            "tender",
            "hilarious",
            "splendid",
            "moving",
            "inventive",
            "charming",
            "thrilling",
            "graceful",
            "wise",
            "enchanting",
            "delightful",
        ),
        "thing": (
            "a {fine#1} and {fine#2} {genre}",
            "a {fine} {genre} with a beating heart",
            "one of the year's best evenings at the cinema",
            "a small treasure of a {genre}",
            "two hours of pure pleasure",
            "a {genre} worth crossing town for",
        ),
    },
    "negative": {
        "view": (
            "the {player} {played_badly}",
            "the {player} {played_badly}",
            "the {writing} {written_badly}",
            "the {writing} {written_badly}",
            "the {craft} {made_badly}",
            "the {craft} {made_badly}",
            "the {part_of_film} dragged on for ever",
            "the {part_of_film} had the whole row asleep",
            "the {part_of_film} was gone from my mind by the car park",
        ),
        "verdict": (
            "I want those two hours of my life back",
            "I was out of the door before the credits",
            "I walked home feeling cheated",
            "I have been warning everyone I know",
            "it was not worth the price of the popcorn",
            "I left the cinema ten years older",
            "it goes straight onto my list of regrets",
            "I looked at my watch until my eyes hurt",
            "I wished it had ended an hour sooner",
            "this is how a {genre} ought never to be made",
            "I would not watch it again for money",
            "it lost me completely",
        ),
        "quality": (
            "tedious",
            "clumsy",
            "dreary",
            "dreadful",
            "lifeless",
            "predictable",
            "tiresome",
            "dull",
            "shapeless",
            "silly",
            "exhausting",
            "boring",
        ),
        "thing": (
            "a {poor#1} and {poor#2} {genre}",
            "a {poor} {genre} without a pulse",
            "one of the year's worst evenings at the cinema",
            "a sad heap of a {genre}",
            "two hours of plain boredom",
            "a {genre} worth crossing the street to avoid",
        ),
    },
}

_WORDS: Lexicon = {
    "played_well": (
        "gave a performance of rare warmth",
        "held every scene without effort",
        "was a marvel to watch",
        "never struck a false note",
        "made me forget that anyone was acting",
        "lit up the screen",
    ),
    "played_badly": (
        "gave a performance of solid wood",
        "sank every scene without effort",
        "was painful to watch",
        "never struck a true note",
        "made me remember that everyone was acting",
        "mumbled through the lines",
    ),
    "writing": ("script", "dialogue", "plot", "story", "screenplay", "last act"),
    "written_well": (
        "was sharp and full of surprises",
        "knew exactly where it was going",
        "trusted the audience to think",
        "hung together beautifully",
        "had more wit than I could note down",
    ),
    "written_badly": (
        "was flat and empty of surprises",
        "had no idea where it was going",
        "treated the audience like infants",
        "fell apart at a touch",
        "had more holes than I could note down",
    ),
    "craft": ("photography", "music", "editing", "lighting", "set design", "sound", "costume work", "camera work"),
    "made_well": (
        "was glorious",
        "deserves a prize of its own",
        "was a feast for the senses",
        "showed real care and taste",
        "was worth the ticket by itself",
    ),
    "made_badly": (
        "was atrocious",
        "deserves a fine of its own",
        "was an insult to the senses",
        "showed neither care nor taste",
        "was bad enough to ask for a refund",
    ),
    "part_of_film": ("first half", "second half", "final hour", "opening", "ending", "long middle part", "last scene"),
    "fine": ("warm", "clever", "funny", "brave", "elegant", "touching", "lively"),
    "poor": ("cold", "stupid", "unfunny", "timid", "clumsy", "hollow", "tired"),
    "friend": ("my sister", "my neighbour", "my brother", "a colleague", "my date", "our babysitter", "my uncle"),
    "crowd": (
        "the critics",
        "most reviewers",
        "the papers",
        "all my friends",
        "the people behind us",
        "the festival jury",
    ),
    "outing": (
        "We saw it on a wet Tuesday",
        "I watched it on a long flight",
        "Our film club picked it last month",
        "We went for my birthday",
        "It was showing at the old cinema by the station",
        "I caught a late screening alone",
        "My children chose it",
    ),
    "but": ("but", "yet", "and still", "but in the end"),
    "although": ("although", "even though", "while", "though"),
    "however": ("Even so", "All the same", "Still", "Nevertheless", "For all that"),
    "promise": (
        "the poster promises",
        "the trailer sells",
        "the title suggests",
        "the reviews foretold",
        "I was braced for",
    ),
}

_PLAIN = (
    "{outing}; {view} and {verdict}.",
    "{view#1}, {view#2}, and {verdict}.",
    "{outing}. It was {thing}, and {verdict}.",
    "{quality} is the word for it: {view#1}, and {view#2}.",
    "I can only agree with {crowd}: {view}. It is {thing}.",
)
_CONTRAST = (
    "{against_view}, {but} {verdict}.",
    "{against_view#1} and {against_view#2}, {but} {verdict}.",
    "{although} {against_view}, {verdict}.",
    "{verdict}, {although} {against_view}.",
    "{verdict}, {although} {against_view#1} and {against_view#2}.",
    "{outing}. Granted, {against_view}. {however}, {verdict}.",
    "{against_view#1}. {against_view#2}. {however}, {verdict}.",
    "it is true that {against_view}; it matters little, because {view}.",
    "{although} {against_view}, {view}, and that decides it: {verdict}.",
    "who cares that {against_view}? {view}, and {verdict}.",
    "{verdict}, and no, I have not forgotten that {against_view}.",
)
_EXPECTATION = (
    "I expected {against_thing} and got {thing}. {outing}.",
    "{promise} {against_thing}. What we were given was {thing}.",
    "{outing}, ready for {against_thing}. {verdict}.",
    "instead of {against_thing}, which is what {promise}, this is {thing}.",
    "far from being {against_thing}, it turned out to be {thing}; {view}.",
    "for twenty minutes it looks like {against_thing}. Then it becomes {thing}, and {verdict}.",
    "it could so easily have been {against_thing}. {outing}, and {verdict}.",
)
_OPINION_OF_OTHERS = (
    "{crowd} called it {against_quality}. I saw another film, it seems: {view}, and {verdict}.",
    "{friend} found it {against_quality} and told me so all the way home. I could not disagree more.",
    "{crowd} keep saying that {against_view}. Nonsense. {verdict}.",
    "{outing}. {friend} thought it {against_quality}; I thought it {quality}.",
    "if {crowd} are right, it is {against_thing}. They are wrong, and {verdict}.",
    "{outing}. Everybody else in the room found it {against_quality}, which only shows how lonely an opinion can be.",
)
_NEGATION = (
    "{outing}. Whatever you have read, there is nothing {against_quality} about it.",
    "{outing}, and nobody I know could call it {against_quality}.",
    "{outing}. Not for one minute was it {against_quality}, whatever {friend} says.",
    "the first film was {against_quality}. This one, as {friend} said at once, is anything but.",
    "do not believe {crowd} when they tell you that it is {against_thing}.",
    "{outing}. {against_quality}? On the contrary.",
    "the book was {against_quality}; the film, to the surprise of {crowd}, is the exact opposite.",
)

_FRAMES = (_PLAIN, _PLAIN, _CONTRAST, _CONTRAST, _CONTRAST, _EXPECTATION, _EXPECTATION, _OPINION_OF_OTHERS, _NEGATION)

# Domain: the genre, with the words that only it uses.
_GENRES: dict[str, Lexicon] = {
    "thriller": {
        "genre": ("thriller", "crime story", "spy film", "heist film"),
        "player": ("villain", "woman playing the detective", "man playing the spy", "old inspector", "chief suspect"),
    },
    "comedy": {
        "genre": ("comedy", "farce", "wedding comedy", "satire"),
        "player": ("lead comedian", "nervous groom", "woman playing the boss", "pair of clowns", "dog's owner"),
    },
    "history": {
        "genre": ("costume drama", "war film", "western", "royal drama"),
        "player": ("old captain", "young queen", "man playing the sheriff", "chorus of soldiers", "narrator"),
    },
    "family": {
        "genre": ("family film", "cartoon", "fairy tale", "school story"),
        "player": ("child actor", "talking bear", "grandmother", "woman playing the witch", "schoolboy hero"),
    },
}


def film_reviews() -> Task:
    """Reviews of films: label negative or positive, domain thriller, comedy, history or family."""
    return build_review_task("film_reviews", _FRAMES, _OPINIONS, _WORDS, _GENRES)
