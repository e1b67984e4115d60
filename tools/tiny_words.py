"""The words of the made-up world that `models/tiny` is trained on.

Called by `tiny_text`. Few enough words that nearly each becomes one token of a small tokenizer;
a word added here after training is a word the shipped model has never seen.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    "Anna Mira Lena Sara Nora Ella Ruth Vera Ida Kira Tess Maya Zoe Lucy Rosa Jane Emma Clara "
    "Freya Greta Hanna Olga Petra Uma"
)
BOYS = _words(
    "Tom Ben Omar Leo Max Hugo Ivan Karl Noah Paul Finn Sam Jonas Felix Oscar Adam David Erik "
    "Frank Georg Henry Liam Mark Viktor"
)
NAMES = GIRLS + BOYS

COLOURS = _words(
    "red blue green yellow black white brown grey pink purple orange gold silver violet"
)
ANIMALS = _words(
    "fox owl cat dog horse cow goat sheep pig duck hen mouse rabbit bear wolf tiger lion frog "
    "snake turtle whale shark crab bee spider monkey camel zebra parrot swan deer otter"
)
CONSONANT_COLOURS = tuple(word for word in COLOURS if word[0] not in "aeiou")
CONSONANT_ANIMALS = tuple(word for word in ANIMALS if word[0] not in "aeiou")
"""Those that take "a" before them."""
CITIES = _words(
    "Paris Rome Berlin London Madrid Vienna Oslo Tokyo Cairo Lima Delhi Sydney Dublin Prague "
    "Athens Lisbon Boston Chicago Warsaw Helsinki Nairobi Seoul Geneva Milan"
)
FOODS = _words(
    "bread cheese soup rice pasta cake honey apples pears grapes plums nuts fish beans corn "
    "salad cookies pancakes carrots potatoes tomatoes berries"
)
PLURAL_FOODS = tuple(word for word in FOODS if word.endswith("s"))
OBJECTS = _words(
    "lantern key map book hammer bottle basket drum mirror ladder rope clock ring candle box "
    "letter kite flute shovel blanket bucket compass crown coin"
)
PLACES = _words(
    "kitchen garden cellar attic garage library barn tower cabin school market hall tent cave "
    "office bakery museum station harbour chapel workshop stable"
)
JOBS = _words(
    "baker doctor teacher farmer painter pilot sailor singer driver gardener nurse judge writer "
    "dancer cook hunter miner tailor"
)
CODE_WORDS = _words(
    "river mountain thunder window silver feather pepper marble ocean planet velvet copper "
    "winter summer forest desert rocket pencil ribbon shadow diamond mango cotton saddle"
)

ADJECTIVES = _words(
    "old small quiet large long cold warm bright dark soft slow young tall narrow deep clean empty"
)
FILLER_SUBJECTS = (
    "the wind", "the rain", "the sun", "the moon", "a cloud", "the snow", "the fog", "the crowd",
    "an old man", "a young woman", "the children", "the neighbours", "a traveller", "the guests",
    "the bus", "the train", "a small boat", "the bird", "the visitors", "the workers",
)  # fmt: skip
FILLER_VERBS = (
    "moved over", "stood near", "waited by", "passed", "turned towards", "came back to",
    "looked at", "went around", "rested beside", "stopped at", "walked along", "slept near",
)  # fmt: skip
FILLER_NOUNS = _words(
    "hill bridge road field lake wall house gate tree village street valley shore fence park well "
    "beach path square mill"
)
FILLER_TIMES = (
    "in the morning", "in the evening", "at noon", "at night", "after lunch", "before dinner",
    "all day", "for an hour", "once more", "again", "without a sound", "as always",
    "on Monday", "on Friday", "on Sunday", "last week",
)  # fmt: skip
VERBS = _words(
    "open close check count clean move paint read write lock repair sell wash cut fill carry "
    "start stop show delete create update list book call cancel measure test print copy"
)
NOUNS = _words(
    "door window table order room ticket flight report list file account bill photo song story "
    "garden car boat house lamp letter price name number task note event message road tree"
)
"""These two name invented tools."""
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words(
    "January February March April May June July August September October November December"
)
SEASONS = _words("spring summer autumn winter")
CATEGORIES = {
    "animals": ANIMALS,
    "colours": COLOURS,
    "cities": CITIES,
    "foods": FOODS,
    "jobs": JOBS,
    "places": PLACES,
    "tools and things": OBJECTS,
    "days": DAYS,
    "months": MONTHS,
}
PROPERTIES = (
    ("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("the night", "black"),
    ("a lemon", "yellow"), ("a tomato", "red"), ("milk", "white"), ("coal", "black"),
    ("the sun", "yellow"), ("a leaf", "green"), ("the sea", "blue"), ("chocolate", "brown"),
)  # fmt: skip
OPPOSITES = (
    ("big", "small"), ("hot", "cold"), ("old", "young"), ("fast", "slow"), ("day", "night"),
    ("up", "down"), ("left", "right"), ("early", "late"), ("happy", "sad"), ("wet", "dry"),
    ("light", "dark"), ("open", "closed"), ("full", "empty"), ("long", "short"),
)  # fmt: skip
SOUNDS = (
    ("cow", "moo"), ("dog", "woof"), ("cat", "meow"), ("duck", "quack"), ("sheep", "baa"),
    ("owl", "hoot"), ("pig", "oink"), ("lion", "roar"), ("bee", "buzz"), ("frog", "croak"),
)  # fmt: skip
NUMBER_WORDS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
