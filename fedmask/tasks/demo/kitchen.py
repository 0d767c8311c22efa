"""Reviews of kitchen goods of 8 to 30 words, positive or negative: what counts is how it stands with the thing today.

As in `films`, every frame speaks of praise and blame alike. `{fact}`, `{outcome}` and `{worth}` agree with the review's
label; their `against_` twins are what was promised, feared, said by others, true of the old one, or true once.
"""

from fedmask.tasks.demo.grammar import Lexicon
from fedmask.tasks.demo.reviews import build_review_task
from fedmask.tasks.task import Task

_OPINIONS: dict[str, Lexicon] = {
    "positive": {
        "outcome": (
            "I have ordered a second one for my mother",
            "it has a place of honour beside the stove",
            "I use it every morning with a smile",
            "I would buy it again tomorrow",
            "I gave my old one away the same day",
            "nobody in this house wants any other",
            "the money was well spent",
            "I have stopped looking for a better one",
            "you will have to prise it from my hands",
            "it makes breakfast the best part of the day",
        ),
        "worth": (
            "sturdy",
            "reliable",
            "practical",
            "well made",
            "a bargain",
            "a pleasure to use",
            "a clever design",
            "worth every penny",
            "the best thing in the kitchen",
        ),
        "fact": (
            "the {part} {holds}",
            "the {part} {holds}",
            "{does_well}",
            "{does_well}",
            "it wipes clean in seconds",
            "it feels solid in the hand",
        ),
    },
    "negative": {
        "outcome": (
            "I have sent it back to the shop",
            "it has a place at the back of the cellar",
            "I curse it every morning",
            "I would not take another as a gift",
            "I fetched my old one back from the attic",
            "nobody in this house will touch it",
            "the money was thrown away",
            "I have started looking for a better one",
            "you may have it if you collect it",
            "it makes breakfast the worst part of the day",
        ),
        "worth": (
            "flimsy",
            "unreliable",
            "impractical",
            "badly made",
            "a swindle",
            "a nuisance to use",
            "a foolish design",
            "overpriced",
            "the worst thing in the kitchen",
        ),
        "fact": (
            "the {part} {breaks}",
            "the {part} {breaks}",
            "{does_badly}",
            "{does_badly}",
            "it smells of burnt rubber",
            "the instructions are a bad joke",
        ),
    },
}

_WORDS: Lexicon = {
    "holds": (
        "sits as firmly as on the first day",
        "has survived two falls",
        "looks as good as new",
        "was made by somebody who cooks",
        "still does its work without complaint",
    ),
    "breaks": (
        "came loose within a week",
        "cracked at the first fall",
        "looks a hundred years old already",
        "was made by somebody who never cooks",
        "gave up its work without warning",
    ),
    "maker": ("the box", "the maker", "the advertisement", "the shop assistant", "the booklet", "the label"),
    "friend": ("my husband", "my wife", "my flatmate", "my mother-in-law", "our cook", "the lady next door", "my son"),
    "crowd": ("most buyers", "the other reviews", "the magazines", "all the cookery blogs", "the tests on television"),
    "purchase": (
        "I bought this {product} in the spring sale",
        "this {product} came as a wedding present",
        "I picked up this {product} for our holiday flat",
        "this {product} replaced one that had served us for years",
        "we got this {product} with our loyalty points",
        "I ordered this {product} after long thought",
    ),
    "at_first": (
        "for the first week",
        "for about a month",
        "in the shop",
        "on the first day",
        "to begin with",
        "at first",
    ),
    "before": ("a year ago", "last autumn", "before Easter", "when it was new", "in my first review"),
    "now": ("now", "these days", "today", "half a year later", "since the summer", "after ten weeks"),
    "old": (
        "the one it replaced",
        "my previous one",
        "the cheaper model",
        "the one my parents had",
        "last year's model",
    ),
    "however": ("Even so", "All the same", "Still", "Nevertheless", "That said", "And yet"),
    "although": ("although", "even though", "though"),
}

_PLAIN = (
    "{purchase}. {fact#1}, {fact#2}, and {outcome}.",
    "{purchase}. I find it {worth}: {fact}.",
    "{worth} is what I call a {product} like this. {fact}, and {outcome}.",
    "{fact#1} and {fact#2}. In a word, {worth}.",
    "{crowd} call this {product} {worth}, and they are right: {fact}.",
    "{fact}. Would I choose this {product} again? Look at it this way: {outcome}.",
)
_CONTRAST = (
    "{although} {against_fact}, {outcome}.",
    "{outcome}, {although} {against_fact#1} and {against_fact#2}.",
    "{purchase}. I admit that {against_fact}. {however}, {outcome}.",
    "yes, {against_fact#1}, and {against_fact#2}. {however}, as a {product} it is {worth}.",
    "that {against_fact} is true enough. What matters more is that {fact}, so {outcome}.",
    "{against_fact}, but {fact}, and for me that settles it: {outcome}.",
    "{purchase}. {against_fact}, which counts for little when {fact}: {outcome}.",
    "{outcome}. Never mind that {against_fact}; the point is that {fact}.",
)
_CHANGE = (
    "{at_first} I thought it {against_worth}; {now} I know that it is {worth}.",
    "{before} I wrote here that {against_fact}. {now} I must add that {fact}, and {outcome}.",
    "{purchase}. {at_first} I called it {against_worth}. {now} I take that back, for {fact}.",
    "{before} you would have heard me say that {against_fact}. Ask me again {now}: {outcome}.",
    "there was a time when I thought this {product} {against_worth}. That time is over: {outcome}.",
)
_PROMISE = (
    "{maker} made us believe that it would be {against_worth}. The truth is that {fact}, and {outcome}.",
    "going by {maker}, {against_fact}. In my kitchen, {fact}, and {outcome}.",
    "{purchase}, expecting it to be {against_worth}. It turned out to be {worth}.",
    "{crowd} swear that {against_fact}. Mine tells another story: {outcome}.",
    "{friend} had told me that it would be {against_worth}. I have seldom heard anything so wrong: {outcome}.",
    "{purchase}. Do not listen to {crowd}, who find it {against_worth}; {outcome}.",
)
_COMPARISON = (
    "{old} was {against_worth}. This {product} is {worth}, a different matter altogether.",
    "{old} was another story: {against_fact}. With this {product}, {fact}, and {outcome}.",
    "{old} was {against_worth}. With this {product} the tables are turned, and {outcome}.",
    "unlike {old}, of which I always said that {against_fact}, this {product} is {worth}.",
)
_NEGATION = (
    "{purchase}. Say what you like, it is certainly not {against_worth}; {fact}.",
    "{purchase}, and not once since then has anybody called it {against_worth}.",
    "it is a long way from being {against_worth}, this {product}, whatever {friend} may tell you.",
    "I cannot see how {crowd} could ever describe this {product} as {against_worth}.",
)
_FRAMES = (_PLAIN, _PLAIN, _PLAIN, _CONTRAST, _CONTRAST, _CONTRAST, _CHANGE, _PROMISE, _COMPARISON, _NEGATION)

# Domain: the product, with the words that only it uses.
_PRODUCTS: dict[str, Lexicon] = {
    "kettle": {
        "product": ("kettle", "teapot", "water boiler"),
        "part": ("lid", "spout", "switch", "handle"),
        "does_well": (
            "the water boils in no time",
            "it pours without spilling a drop",
            "it keeps tea hot for hours",
        ),
        "does_badly": (
            "it leaves chalk in every cup",
            "it roars so loudly that the cat hides",
            "it burns my fingers",
        ),
    },
    "pan": {
        "product": ("frying pan", "saucepan", "iron skillet"),
        "part": ("handle", "coating", "rim", "glass lid"),
        "does_well": (
            "eggs slide off like skaters",
            "it heats evenly to the very edge",
            "it goes from hob to oven unharmed",
        ),
        "does_badly": (
            "every sauce tastes of metal",
            "it tips over when it is empty",
            "it weighs as much as an anvil",
        ),
    },
    "knife": {
        "product": ("bread knife", "paring knife", "chef's knife"),
        "part": ("blade", "grip", "tip", "sheath"),
        "does_well": (
            "ripe tomatoes fall into perfect slices",
            "it keeps its edge for months",
            "it even carves frozen bread",
        ),
        "does_badly": (
            "it rusts after every wash",
            "it gives me blisters",
            "it leaves grey marks on the board",
        ),
    },
    "blender": {
        "product": ("blender", "food mixer", "stick blender"),
        "part": ("jug", "motor", "base", "button"),
        "does_well": (
            "soups come out as smooth as silk",
            "it crushes ice in one go",
            "it fits into the smallest cupboard",
        ),
        "does_badly": (
            "it leaks at every seam",
            "it shakes the whole table",
            "it overheats after a minute",
        ),
    },
    "coffee": {
        "product": ("coffee machine", "coffee grinder", "milk frother"),
        "part": ("filter", "water tank", "drip tray", "dial"),
        "does_well": (
            "the coffee tastes of Italy",
            "it is ready before I have found my slippers",
            "it makes the whole flat smell of holidays",
        ),
        "does_badly": (
            "it floods the table",
            "it wakes the neighbours",
            "it blinks for no reason all night",
        ),
    },
}


def kitchen_reviews() -> Task:
    """Reviews of kitchen goods: label negative or positive, domain kettle, pan, knife, blender or coffee."""
    return build_review_task("kitchen_reviews", _FRAMES, _OPINIONS, _WORDS, _PRODUCTS)
