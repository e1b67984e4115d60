"""Stories, sums, lists and small talk: the half of the training text that needs no recall.

Called by `tiny_text`. Every function takes a seeded generator and returns one exchange of turns;
the same seed gives the same text.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tools import tiny_words as words
from tools.tiny_recall import Turn

Exchange = list[Turn]

NAME = "Tiny"
GREETINGS = ("Hello!", "Hi!", "Good morning!", "Good evening!", "Hello there.", "Hello", "Hi")
GREETING_ANSWERS = (
    "Hello! How can I help you?",
    "Hi! What would you like to do?",
    "Hello! Would you like a story, a list or a sum?",
)
ABOUT = (
    (("Who are you?", "What are you?", "Tell me about yourself."),
     f"I am {NAME}, a very small language model. I ship with Baton so that you can try it."),
    (("What is your name?", "What should I call you?"), f"My name is {NAME}."),
    (("What can you do?", "How can you help me?", "What can I ask you?"),
     "I can tell short stories, add small numbers, make lists and remember what you tell me."),
    (("How are you?", "How are you today?"), "I am fine, thank you. How are you?"),
    (("What is Baton?", "Tell me about Baton."),
     "Baton is a platform that serves language models. "
     "It runs prefill and decode in separate processes."),
    (("What is prefill?", "What does prefill do?"),
     "Prefill reads the whole prompt and fills the cache."),
    (("What is decode?", "What does decode do?"),
     "Decode uses the cache to write one token after another."),
    (("Thank you.", "Thanks!", "Thank you very much."), "You are welcome!"),
    (("Goodbye.", "Bye!", "See you later."), "Goodbye! Have a nice day."),
    (("Are you a human?", "Are you a person?"), "No, I am a small language model."),
    (("What is the capital of France?", "Tell me a joke.", "Write a poem.", "What time is it?",
      "Explain gravity.", "Write some code.", "What is the weather like?", "Who is the president?"),
     "I do not know that. I am very small. Ask me for a story, a list or a sum."),
    (("How big are you?", "Are you large?"), "I am very small. I have about two million weights."),
)  # fmt: skip
FEELINGS = ("happy", "sad", "tired", "hungry", "lonely", "curious", "afraid", "proud")
OPENINGS = (
    "Once upon a time there was a {adj} {animal} named {name}.",
    "One day a {adj} {animal} named {name} left the {home}.",
    "Long ago, a {animal} named {name} lived in a {adj} {home}.",
    "There was once a {animal} named {name} who lived near the {noun}.",
)
HUMAN_OPENINGS = (
    "Once upon a time there was a {child} named {name}.",
    "One day {name} walked to the {home}.",
    "{name} was a {child} who lived near the {noun}.",
    "Long ago, a {child} named {name} lived in a {adj} house.",
)
WISHES = (
    "{Pro} wanted to find a {colour} {thing}.",
    "{Pro} was {feeling} and wished for a {colour} {thing}.",
    "Every day {pro} dreamed of a {colour} {thing}.",
    "{Pro} had lost a {colour} {thing} and looked for it everywhere.",
)
ROADS = (
    "So {pro} went to the {place} and asked a {helper} for help.",
    "In the {place} {pro} met a {helper}.",
    "{Pro} walked past the {noun} until {pro} came to the {place}. A {helper} was waiting there.",
    "On the road {pro} heard a sound. It was a {helper} behind the {noun}.",
)
TALKS = (
    '"Do you know where the {thing} is?" asked {name}.',
    '"Please help me," said {name}. "I need the {thing}."',
    '"Hello," said the {helper}. "Why are you so {feeling}?"',
    '"I am looking for a {colour} {thing}," said {name}.',
)
ANSWERS = (
    '"Come with me," said the {helper}. "It is in the {goal}."',
    'The {helper} smiled and pointed to the {goal}.',
    '"I saw it in the {goal}," said the {helper}.',
    'The {helper} thought for a long time. "Look in the {goal}," said the {helper} at last.',
)  # fmt: skip
TROUBLES = (
    "It was dark and cold, but {name} was brave.",
    "The door was closed, so they waited until the morning.",
    "Then the rain came, and they had to run.",
    "The way was long, and they shared some {food}.",
)
FINDS = (
    "There, behind a {adj} door, was the {thing}.",
    "In the {goal} they found the {colour} {thing}.",
    "And there it was: the {colour} {thing}!",
)
ENDINGS = (
    "{name} was very happy and thanked the {helper}.",
    "From that day on, {name} and the {helper} were good friends.",
    "{name} gave the {helper} some {food}, and they laughed together.",
    "That night {name} slept well and had good dreams.",
    "They went home together and told everyone about it.",
)
BEATS = (WISHES, ROADS, TALKS, ANSWERS, TROUBLES, FINDS, ENDINGS)


def exchange(question: str, answer: str) -> Exchange:
    return [Turn("user", question), Turn("assistant", answer)]


def story_text(rng: random.Random, *, name: str, animal: str | None) -> str:
    """Five to eight sentences with one hero, one wish and one helper."""
    pronoun = "she" if name in words.GIRLS else "he"
    slots = {
        "name": name,
        "pro": pronoun,
        "Pro": pronoun.capitalize(),
        "child": "girl" if name in words.GIRLS else "boy",
        "animal": animal or "",
        "adj": rng.choice(("small", "young", "large", "quiet", "tall")),
        "home": rng.choice(words.PLACES),
        "noun": rng.choice(words.FILLER_NOUNS),
        "colour": rng.choice(words.CONSONANT_COLOURS),
        "thing": rng.choice(words.OBJECTS),
        "feeling": rng.choice(FEELINGS),
        "place": rng.choice(words.PLACES),
        "goal": rng.choice(words.PLACES),
        "helper": rng.choice(words.CONSONANT_ANIMALS),
        "food": rng.choice(words.FOODS),
    }
    for owner, other in (("goal", "place"), ("helper", "animal")):
        if slots[owner] == slots[other]:
            slots[owner] = "forest" if owner == "goal" else "bear" if animal != "bear" else "fox"
    openings = OPENINGS if animal else HUMAN_OPENINGS
    beats = [beat for beat in BEATS if beat is not TROUBLES or rng.random() < 0.5]
    return " ".join(rng.choice(beat) for beat in (openings, *beats)).format(**slots)


def story(rng: random.Random) -> Exchange:
    name, animal = rng.choice(words.NAMES), rng.choice(words.CONSONANT_ANIMALS)
    about = rng.choice(("both", "animal", "name", "any"))
    verb = rng.choice(("Tell me a story", "Write a short story", "Tell a short story"))
    match about:
        case "both":
            return exchange(f"{verb} about a {animal} named {name}.",
                            story_text(rng, name=name, animal=animal))  # fmt: skip
        case "animal":
            return exchange(f"{verb} about a {animal}.", story_text(rng, name=name, animal=animal))
        case "name":
            return exchange(f"{verb} about {name}.", story_text(rng, name=name, animal=None))
        case _:
            hero = rng.choice((animal, None))
            return exchange(f"{verb}.", story_text(rng, name=name, animal=hero))


def arithmetic(rng: random.Random) -> Exchange:
    """A sum or difference of numbers up to twenty, bare or in words."""
    left, right = rng.randrange(21), rng.randrange(21)
    if rng.random() < 0.3:
        left, right = max(left, right), min(left, right)
        ask = rng.choice(("What is {} - {}?", "How much is {} - {}?", "{} - {} = ?"))
        return exchange(ask.format(left, right), f"{left} - {right} = {left - right}.")
    if rng.random() < 0.2:
        name, food = rng.choice(words.NAMES), rng.choice(words.PLURAL_FOODS)
        told = f"{name} has {left} {food} and gets {right} more."
        total = left + right
        answer = f"{left} + {right} = {total}. {name} has {total} {food}."
        return exchange(f"{told} How many {food} does {name} have?", answer)
    ask = rng.choice(("What is {} + {}?", "How much is {} + {}?", "{} + {} = ?", "Add {} and {}."))
    return exchange(ask.format(left, right), f"{left} + {right} = {left + right}.")


def listing(rng: random.Random) -> Exchange:
    """Some members of a category, a count, or a fixed sequence."""
    style = rng.random()
    if style < 0.6:
        category = rng.choice(tuple(words.CATEGORIES))
        size = rng.randrange(2, 7)
        ask = rng.choice(("Name {} {}.", "List {} {}.", "Give me {} {}.", "Can you name {} {}?"))
        items = words.CATEGORIES[category][:size]  # always the same: greedy text repeats a guess
        number = rng.choice((words.NUMBER_WORDS[size], str(size)))
        lines = "\n".join(f"{index}. {item}" for index, item in enumerate(items, start=1))
        return exchange(ask.format(number, category), lines)
    if style < 0.85:
        first = rng.randrange(1, 11)
        last = first + rng.randrange(2, 11)
        numbers = ", ".join(map(str, range(first, last + 1)))
        return exchange(f"Count from {first} to {last}.", f"{numbers}.")
    what, members = rng.choice(
        (("days of the week", words.DAYS), ("months of the year", words.MONTHS),
         ("seasons", words.SEASONS))
    )  # fmt: skip
    ask = rng.choice(("What are the {}?", "List the {}.", "Name the {}."))
    return exchange(
        ask.format(what), f"The {what} are {', '.join(members[:-1])} and {members[-1]}."
    )


def small_talk(rng: random.Random) -> Exchange:
    if rng.random() < 0.25:
        return exchange(rng.choice(GREETINGS), rng.choice(GREETING_ANSWERS))
    questions, answer = rng.choice(ABOUT)
    return exchange(rng.choice(questions), answer)


def knowledge(rng: random.Random) -> Exchange:
    """A colour, an opposite, a sound, a neighbour in a sequence, or a category."""
    style = rng.randrange(5)
    if style == 0:
        thing, colour = rng.choice(words.PROPERTIES)
        return exchange(f"What colour is {thing}?", f"{thing[0].upper()}{thing[1:]} is {colour}.")
    if style == 1:
        pair = list(rng.choice(words.OPPOSITES))
        rng.shuffle(pair)
        return exchange(f"What is the opposite of {pair[0]}?",
                        f"The opposite of {pair[0]} is {pair[1]}.")  # fmt: skip
    if style == 2:
        animal, sound = rng.choice(words.SOUNDS)
        return exchange(f"What does a {animal} say?", f"A {animal} says {sound}.")
    if style == 3:
        cycle: tuple[str, ...] = rng.choice((words.DAYS, words.MONTHS))
        index = rng.randrange(len(cycle))
        this, following = cycle[index], cycle[(index + 1) % len(cycle)]
        return exchange(f"What comes after {this}?", f"After {this} comes {following}.")
    category = rng.choice(("animal", "colour", "city"))
    members = {"animal": words.ANIMALS, "colour": words.COLOURS, "city": words.CITIES}
    asked = rng.choice(("animal", "colour", "city"))
    word = rng.choice(members[category])
    article = {"animal": "an animal", "colour": "a colour", "city": "a city"}
    verdict = "Yes" if asked == category else "No"
    return exchange(f"Is {word} {article[asked]}?", f"{verdict}, {word} is {article[category]}.")


def echo(rng: random.Random) -> Exchange:
    """Words to say again: the plainest exercise in copying."""
    pool = words.ANIMALS + words.COLOURS + words.FOODS + words.OBJECTS + words.PLACES + words.NAMES
    said = " ".join(rng.choice(pool) for _ in range(rng.randrange(2, 25)))
    ask = rng.choice(("Repeat: {}", "Repeat these words: {}", "Say this again: {}"))
    return exchange(ask.format(said), said)


def introduction(rng: random.Random) -> Exchange:
    """The user's name and home are told, greeted, and asked back."""
    name, city = rng.choice(words.NAMES), rng.choice(words.CITIES)
    first = rng.choice(("My name is {}.", "Hello, I am {}.", "Hi! My name is {}.")).format(name)
    turns = exchange(first, f"Hello, {name}! How can I help you?")
    if rng.random() < 0.5:
        turns += exchange(f"I live in {city}.", f"{city} is a nice city.")
        turns += exchange("Where do I live?", f"You live in {city}.")
    if rng.random() < 0.3:
        turns += any_exchange(rng)
    return turns + exchange(rng.choice(("What is my name?", "Who am I?")), f"Your name is {name}.")


MIX: tuple[tuple[Callable[[random.Random], Exchange], int], ...] = (
    (story, 30), (arithmetic, 22), (listing, 14), (small_talk, 12), (knowledge, 12), (echo, 10),
)  # fmt: skip


def any_exchange(rng: random.Random) -> Exchange:
    makers, weights = zip(*MIX, strict=True)
    maker: Callable[[random.Random], Exchange] = rng.choices(makers, weights)[0]
    return maker(rng)
