"""Words and facts of the world; everything else is drawn from these tables."""

from __future__ import annotations

from itertools import product

WOMEN = ("anna", "clara", "emma", "greta", "ida", "julia", "laura", "maria")
MEN = ("ben", "david", "felix", "hugo", "karl", "leo", "otto", "paul")
PRONOUN = {**dict.fromkeys(WOMEN, "she"), **dict.fromkeys(MEN, "he")}

ANIMAL_RELATIONS = ("kind", "home", "food", "color", "size")
ANIMALS: dict[str, tuple[str, ...]] = {
    "dog": ("mammal", "house", "meat", "brown", "large"),
    "cat": ("mammal", "house", "meat", "grey", "small"),
    "mouse": ("mammal", "house", "seeds", "grey", "small"),
    "horse": ("mammal", "farm", "grass", "brown", "large"),
    "cow": ("mammal", "farm", "grass", "white", "large"),
    "sheep": ("mammal", "farm", "grass", "white", "small"),
    "pig": ("mammal", "farm", "fruit", "red", "large"),
    "bear": ("mammal", "forest", "honey", "brown", "large"),
    "fox": ("mammal", "forest", "meat", "red", "small"),
    "wolf": ("mammal", "forest", "meat", "grey", "large"),
    "deer": ("mammal", "forest", "grass", "brown", "large"),
    "camel": ("mammal", "desert", "plants", "yellow", "large"),
    "whale": ("mammal", "sea", "plants", "blue", "large"),
    "seal": ("mammal", "sea", "meat", "black", "large"),
    "otter": ("mammal", "river", "meat", "brown", "small"),
    "eagle": ("bird", "desert", "meat", "brown", "large"),
    "owl": ("bird", "forest", "meat", "white", "small"),
    "crow": ("bird", "farm", "seeds", "black", "small"),
    "duck": ("bird", "river", "plants", "green", "small"),
    "swan": ("bird", "river", "grass", "white", "large"),
    "parrot": ("bird", "house", "fruit", "green", "small"),
    "robin": ("bird", "forest", "fruit", "red", "small"),
    "gull": ("bird", "sea", "seeds", "white", "large"),
    "hen": ("bird", "farm", "seeds", "yellow", "small"),
    "shark": ("fish", "sea", "meat", "grey", "large"),
    "tuna": ("fish", "sea", "meat", "blue", "large"),
    "salmon": ("fish", "river", "seeds", "red", "small"),
    "trout": ("fish", "river", "plants", "green", "small"),
    "bee": ("bug", "farm", "honey", "yellow", "small"),
    "ant": ("bug", "forest", "seeds", "black", "small"),
    "beetle": ("bug", "desert", "plants", "black", "small"),
    "moth": ("bug", "house", "fruit", "grey", "small"),
}

THING_RELATIONS = ("material", "room", "use")
THINGS: dict[str, tuple[str, ...]] = {
    "knife": ("metal", "kitchen", "cut"),
    "pan": ("metal", "kitchen", "cook"),
    "key": ("metal", "hall", "open"),
    "saw": ("metal", "garage", "cut"),
    "nail": ("metal", "garage", "build"),
    "lamp": ("metal", "office", "light"),
    "stove": ("metal", "kitchen", "cook"),
    "cup": ("glass", "kitchen", "drink"),
    "bottle": ("glass", "kitchen", "drink"),
    "mirror": ("glass", "hall", "look"),
    "window": ("glass", "office", "look"),
    "vase": ("glass", "bedroom", "carry"),
    "bulb": ("glass", "garage", "light"),
    "chair": ("wood", "office", "sit"),
    "bench": ("wood", "hall", "sit"),
    "table": ("wood", "kitchen", "cook"),
    "pencil": ("wood", "office", "write"),
    "ladder": ("wood", "garage", "build"),
    "bed": ("wood", "bedroom", "sleep"),
    "door": ("wood", "hall", "open"),
    "book": ("paper", "bedroom", "read"),
    "letter": ("paper", "office", "read"),
    "map": ("paper", "garage", "read"),
    "note": ("paper", "kitchen", "write"),
    "ticket": ("paper", "hall", "carry"),
    "shirt": ("cloth", "bedroom", "wear"),
    "coat": ("cloth", "hall", "wear"),
    "towel": ("cloth", "kitchen", "wash"),
    "bag": ("cloth", "office", "carry"),
    "blanket": ("cloth", "bedroom", "sleep"),
}
PROPERTY = {"metal": "rust", "glass": "break", "wood": "float", "paper": "burn", "cloth": "tear"}

COLOURS = ("black", "white", "brown", "grey", "red", "green", "yellow", "blue")
SIZES = ("small", "large")
MOODS = ("happy", "sad", "old", "young")
PLACES = ("house", "farm", "forest", "desert", "sea", "river", "garden", "park")
VERBS = ("sleeps", "plays", "waits", "eats")

# what somebody is, how it came about, what helps
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hungry": (("had not eaten all day", "missed the lunch", "smelled the bread"),
               ("ate the soup", "ate an apple", "cooked a meal")),
    "thirsty": (("had run in the sun", "had eaten too much salt", "had no water all day"),
                ("drank the water", "drank a cup of milk", "drank some tea")),
    "tired": (("had worked all night", "had not slept", "came home very late"),
              ("went to bed", "closed both eyes", "took a nap")),
    "cold": (("walked in the snow", "sat in the wind", "had lost a coat"),
             ("put on a coat", "lit the fire", "closed the window")),
    "dirty": (("fell in the mud", "worked in the garden", "fixed the car"),
              ("took a bath", "used the soap", "washed both hands")),
    "sick": (("had a fever", "ate bad fish", "had a broken leg"),
             ("saw the doctor", "took the medicine", "called the nurse")),
    "bored": (("had nothing to do", "sat alone all day", "saw a long film"),
              ("played a game", "read a book", "met a friend")),
    "late": (("missed the bus", "had slept too long", "forgot the time"),
             ("ran to the office", "drove very fast", "left in a hurry")),
    "lost": (("took the wrong road", "did not know the city", "was alone in the forest"),
             ("looked at the map", "asked for the way", "followed the signs")),
    "poor": (("had no money", "lost the job", "paid too much"),
             ("looked for work", "sold the bike", "counted the coins")),
}  # fmt: skip
TIMES = ("in the morning", "in the evening", "on monday", "on friday", "in winter", "in summer")

GOOD = ("great", "lovely", "fine", "wonderful", "fun")
BAD = ("awful", "boring", "ugly", "terrible", "weak")
REVIEWED = ("film", "music", "food", "story", "hotel", "game", "song", "room")

_TRANSLATED = (*ANIMALS, *COLOURS, *SIZES, *MOODS, *PLACES, *VERBS, "not", "and")
_SYLLABLES = tuple(c + v for c, v in product("zvkj", "aou"))
# the other language's words: two syllables each, one word for one word
OTHER = dict(zip(_TRANSLATED, (a + b for a, b in product(_SYLLABLES, _SYLLABLES)), strict=False))


def fact(entity: str, relation: str) -> str:
    """The value of one relation. Raises KeyError or ValueError if it is unknown."""
    if relation in ANIMAL_RELATIONS:
        return ANIMALS[entity][ANIMAL_RELATIONS.index(relation)]
    return THINGS[entity][THING_RELATIONS.index(relation)]


def values(relation: str) -> list[str]:
    """Every value that the relation takes, sorted."""
    table, names = (
        (ANIMALS, ANIMAL_RELATIONS) if relation in ANIMAL_RELATIONS else (THINGS, THING_RELATIONS)
    )
    return sorted({row[names.index(relation)] for row in table.values()})
