"""The kinds of tools that the training text calls: what they are named, asked and answered.

Called by `tiny_tools`. A value is drawn from the word lists, or made up now and then.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from tools import tiny_words as words

MADE_UP_SHARE = 0.12
SYLLABLES = ("ba", "ko", "lin", "mar", "to", "ver", "san", "di", "gra", "pel", "us", "en", "zo")
MADE_UP = re.compile(f" ?({'|'.join(SYLLABLES)}){{2,4}}", re.IGNORECASE)
Value = str | int
Result = dict[str, Value] | str
"""What a tool returns: an object, or text."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What an argument may be called and where its values come from."""

    names: tuple[str, ...]
    draw: Callable[[random.Random], Value]
    type: str = "string"


@dataclass(frozen=True, slots=True)
class Skill:
    """A familiar tool: its spellings, what is asked of it, and what it gives back."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    slots: tuple[Slot, ...]
    questions: tuple[str, ...]
    result: Callable[[random.Random], Result]


def _one_of(*values: str) -> Callable[[random.Random], Value]:
    return lambda rng: rng.choice(values)


def up_to(limit: int) -> Callable[[random.Random], Value]:
    return lambda rng: rng.randrange(limit)


def made_up(rng: random.Random) -> str:
    """A name that no list has, so that copying is learned for words in pieces too."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randrange(2, 5))).capitalize()


def _named(*values: str) -> Callable[[random.Random], Value]:
    """One of `values`, or a made-up name now and then."""

    def draw(rng: random.Random) -> Value:
        if rng.random() < MADE_UP_SHARE:
            return " ".join(made_up(rng) for _ in range(rng.choice((1, 1, 1, 2))))
        return rng.choice(values)

    return draw


def phrase(rng: random.Random) -> Value:
    pool = words.ANIMALS + words.COLOURS + words.FOODS + words.OBJECTS + words.CODE_WORDS
    return " ".join(rng.choice(pool) for _ in range(rng.choice((1, 1, 2, 3))))


_CITY = Slot(("city", "city", "location", "place", "town"), _named(*words.CITIES))
_NAME = Slot(("name", "name", "person", "user"), _named(*words.NAMES))
_ROOM = Slot(("room", "place", "location"), _one_of(*words.PLACES))
_ITEM = Slot(("item", "name", "product"), _one_of(*words.FOODS, *words.OBJECTS))
_SKIES = ("sunny", "cloudy", "rainy", "windy", "cold", "warm")


def _weather(rng: random.Random) -> Result:
    sky, degrees = rng.choice(_SKIES), rng.randrange(40)
    style = rng.randrange(4)
    if style == 0:
        return f"It is {sky}."
    if style == 1:
        return sky
    return {"temperature": degrees, "sky": sky} if style == 2 else {"weather": sky}


def _number(key: str, limit: int) -> Callable[[random.Random], Result]:
    def draw(rng: random.Random) -> Result:
        value = rng.randrange(limit)
        return str(value) if rng.random() < 0.5 else {key: value}

    return draw


def _status(rng: random.Random) -> Result:
    state = rng.choice(("done", "ready", "open", "closed", "late", "full", "empty"))
    return {"status": state} if rng.random() < 0.5 else state


def _clock(rng: random.Random) -> Result:
    value = f"{rng.randrange(24)}:{rng.randrange(10, 60)}"
    return {"time": value} if rng.random() < 0.5 else value


_NUMBERS = (
    Slot(("a", "x", "left"), up_to(1000), "integer"),
    Slot(("b", "y", "right"), up_to(1000), "integer"),
)
SEVERAL = (_CITY, _ROOM, _ITEM)
"""Slots that one question may fill twice, for two calls."""
SKILLS = (
    Skill(
        ("get_weather", "get_current_weather", "weather", "get_weather"),
        (
            "Get the weather of a city.",
            "The weather in a city.",
            "Get current weather for a given location.",
            "Get the current weather in a location.",
            "Get current temperature for a given location.",
            "Get weather.",
        ),
        (_CITY,),
        (
            "What is the weather in {0}?",
            "What is the weather like in {0}?",
            "How is the weather in {0} today?",
            "Tell me the weather in {0}.",
            "What's the weather in {0}?",
            "What is the weather like in {0} today?",
        ),
        _weather,
    ),
    Skill(
        ("get_time", "get_current_time", "current_time"),
        ("Get the time in a city.", "The current time of a place."),
        (_CITY,),
        ("What time is it in {0}?", "Tell me the time in {0}.", "What is the time in {0}?"),
        _clock,
    ),
    Skill(
        ("add", "add_numbers", "sum"),
        ("Add two numbers.", "The sum of two numbers."),
        _NUMBERS,
        (
            "What is {0} + {1}?",
            "Add {0} and {1}.",
            "How much is {0} + {1}?",
            "What is {0} plus {1}?",
        ),
        _number("result", 2000),
    ),
    Skill(
        ("multiply", "multiply_numbers"),
        ("Multiply two numbers.",),
        _NUMBERS,
        (
            "What is {0} times {1}?",
            "Multiply {0} by {1}.",
            "Multiply {0} and {1}.",
            "What is {0} * {1}?",
        ),
        _number("result", 2000),
    ),
    Skill(
        ("search", "web_search", "search_web", "look_up"),
        ("Search the web.", "Search for a text."),
        (Slot(("query", "query", "text"), phrase),),
        ("Search for {0}.", "Search the web for {0}.", "Look up {0}.", "Please search for {0}."),
        _status,
    ),
    Skill(
        ("send_message", "send_mail", "send_email"),
        ("Send a message to a person.", "Send text to a name."),
        (
            Slot(("to", "name", "recipient"), _named(*words.NAMES)),
            Slot(("text", "message", "body"), phrase),
        ),
        ("Send {0} the message {1}.", "Send a message to {0}: {1}", "Write to {0}: {1}"),
        _status,
    ),
    Skill(
        ("turn_on_light", "light_on"),
        ("Turn on the light in a room.",),
        (_ROOM,),
        ("Turn on the light in the {0}.", "Please turn on the light in the {0}."),
        _status,
    ),
    Skill(
        ("turn_off_light", "light_off"),
        ("Turn off the light in a room.",),
        (_ROOM,),
        ("Turn off the light in the {0}.", "Please turn off the light in the {0}."),
        _status,
    ),
    Skill(
        ("get_price", "price", "find_price"),
        ("Get the price of an item.",),
        (_ITEM,),
        ("What is the price of {0}?", "Tell me the price of {0}.", "What does {0} cost?"),
        _number("price", 100),
    ),
    Skill(
        ("buy", "order", "buy_item"),
        ("Buy an item.", "Order some items."),
        (_ITEM, Slot(("count", "number", "amount"), up_to(100), "integer")),
        ("Buy {1} {0}.", "Order {1} {0}.", "Please buy {1} {0}."),
        _status,
    ),
    Skill(
        ("set_alarm", "set_timer"),
        ("Set an alarm.", "Set the alarm to an hour."),
        (Slot(("hour", "time"), up_to(24), "integer"),),
        ("Set an alarm for {0}.", "Wake me at {0}.", "Set the alarm to {0}."),
        _status,
    ),
    Skill(
        ("get_user", "find_user", "get_person"),
        ("Find a person by name.", "Get a user."),
        (_NAME,),
        ("Find the user {0}.", "Who is {0}?", "Tell me about {0}."),
        lambda rng: {"city": rng.choice(words.CITIES), "job": rng.choice(words.JOBS)},
    ),
    Skill(
        ("Person", "save_person", "UserDetail", "final_result"),
        ("A person with name and age.", "Save a person.", "The final result."),
        (Slot(("name",), _named(*words.NAMES)), Slot(("age",), up_to(100), "integer")),
        ("{0} is {1} years old.", "Save {0}, age {1}.", "Extract: {0} is {1} years old."),
        _status,
    ),
    Skill(
        ("translate", "translate_text"),
        ("Translate a text.",),
        (
            Slot(("text", "word"), phrase),
            Slot(("language", "to"), _one_of("French", "German", "Spanish", "Italian")),
        ),
        ("Translate {0} to {1}.", "Say {0} in {1}."),
        lambda rng: str(phrase(rng)),
    ),
)
INVENTED = (
    (Slot(("name", "person", "owner"), _named(*words.NAMES)), "of {}"),
    (Slot(("city", "location"), _named(*words.CITIES)), "in {}"),
    (Slot(("colour", "color"), _one_of(*words.COLOURS)), "in {}"),
    (Slot(("place", "room"), _one_of(*words.PLACES)), "in the {}"),
    (Slot(("number", "id", "count"), up_to(1000), "integer"), "with number {}"),
    (Slot(("day", "date"), _one_of(*words.DAYS)), "on {}"),
    (Slot(("animal", "pet"), _one_of(*words.ANIMALS)), "for the {}"),
    (Slot(("query", "word", "text"), _one_of(*words.CODE_WORDS)), "called {}"),
)
RESULT_KEYS = (
    "status", "result", "price", "number", "name", "city", "colour", "day", "time", "code",
)  # fmt: skip
