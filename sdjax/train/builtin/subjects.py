"""The subjects of the built-in model's pictures: emoji, their names, and the background colours.

A subject is a character of Noto Color Emoji. Near-duplicates are left out: clocks, flags, skin tones and faces that
differ in their expression. Of an animal's head and its whole body we keep the one that is easier to recognise at 40
pixels. A name is the character's Unicode name without words that only separate two characters ("DOG FACE" is a dog).
If Unicode names the sign instead of the thing, or uses a long phrase, the name is the usual word.
"""

import functools
import unicodedata

_ANIMALS = (
    "🐶🐱🐭🐰🦊🐻🐼🐨🐯🦁🐮🐷🐸🐵🐔🐧🐦🦆🦅🦉🦇🐴🦄🐝🐛🦋🐌🐞🐜🕷🦂🐢🐍🦎🦖🐙🦐🦞🦀🐡🐠🐬🐳🦈🐊🦓🦍🐘🦏🐪🦒🦘"
    "🐑🐐🦌🐓🦚🦜🦢🦩🦝🦨🦔🐉"
)
_NATURE = "🌵🎄🌲🌴🍀🍁🍄🌹🌻🌷🌸🌞🌙⭐🔥🌈☁⚡❄⛄💧🌊🌍🌋"
_FOOD = "🍎🍐🍊🍋🍌🍉🍇🍓🍒🍑🍍🥝🍅🍆🥑🥦🥒🌶🌽🥕🧄🧅🥐🍞🥨🧀🥚🥞🍔🍟🍕🌭🌮🍿🍣🍦🍩🍪🎂🧁🍭🍯☕🍷🍺"
_PLAY = "⚽🏀🏈⚾🎾🎱🏓🥊🎯🎮🎲🧩🎨🎸🎹🎺🎻🥁🎷🏆🎁🎈"
_PLACES = "🚗🚕🚌🚑🚒🚚🚜🏍🚲🚂🚀🛸🚁⛵🚢✈⚓🎡🗼🗽⛺🏠🏰⛪🗿"
_THINGS = "⌚📱💻📷📺📻💡🔦🕯🔨🔧⚙🧲💣🔪🛡🔑🔒🚪🪑🛁🧸🧹🛒✂📖🔔📣🔭🔬👑🎩👓👕👖👗👟👠👢🧦🎒💍💎💰❤👻🤖👽💀🎃🤡👁🦷🦴🧠"

CHARACTERS = tuple(_ANIMALS + _NATURE + _FOOD + _PLAY + _PLACES + _THINGS)

_NAMES = {  # names that differ from the Unicode name without " FACE"
    "🐝": "bee", "🐛": "caterpillar", "🐞": "ladybug", "🦖": "tyrannosaurus", "🐳": "whale", "🐪": "camel",
    "🌞": "sun", "🌙": "moon", "⭐": "star", "⚡": "lightning bolt", "⛄": "snowman", "💧": "drop of water",
    "🌊": "wave", "🌍": "globe", "🍀": "clover", "🌲": "fir tree", "🎄": "christmas tree", "🥝": "kiwi",
    "🌶": "chili pepper", "🌽": "corn cob", "🧀": "piece of cheese", "🍦": "ice cream", "🎂": "birthday cake",
    "🍯": "honey pot", "☕": "cup of coffee", "🍷": "glass of wine", "🍺": "mug of beer", "⚽": "soccer ball",
    "🏀": "basketball", "🏈": "football", "🎾": "tennis racquet", "🎱": "billiard ball",
    "🏓": "table tennis paddle", "🎯": "target", "🎮": "game controller", "🎲": "die", "🧩": "puzzle piece",
    "🎹": "piano", "🥁": "drum", "🎁": "present", "🚗": "red car", "🚕": "taxi", "🚚": "truck", "🏍": "motorcycle",
    "🚂": "locomotive", "🗼": "tower", "🗽": "statue of liberty", "🏠": "house", "🏰": "castle", "🗿": "stone head",
    "💻": "laptop", "💡": "light bulb", "🔦": "torch", "🔪": "kitchen knife", "🛒": "shopping cart",
    "✂": "pair of scissors", "📖": "book", "📣": "megaphone", "👓": "pair of glasses", "👖": "pair of jeans",
    "👟": "sneaker", "👠": "high-heeled shoe", "👢": "boot", "🧦": "pair of socks", "🎒": "backpack",
    "💎": "diamond", "❤": "red heart", "👽": "alien", "🎃": "halloween pumpkin", "🍇": "bunch of grapes",
    "🍒": "pair of cherries", "🍟": "portion of french fries", "🥞": "stack of pancakes", "🍿": "box of popcorn",
    "🍞": "loaf of bread", "🧄": "bulb of garlic", "🍣": "piece of sushi", "🥦": "head of broccoli", "🔥": "fire",
}  # fmt: skip

COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB, 0 to 255; as far from each other as a dozen everyday names go
    "red": (214, 40, 46), "orange": (246, 140, 28), "yellow": (252, 218, 62), "green": (52, 160, 72),
    "blue": (46, 92, 214), "purple": (126, 58, 172), "pink": (250, 160, 200), "brown": (118, 76, 44),
    "black": (22, 22, 24), "white": (248, 248, 248), "gray": (140, 142, 146), "turquoise": (58, 200, 196),
}  # fmt: skip


@functools.cache
def names() -> tuple[str, ...]:
    """Returns the subjects' names, in the order of CHARACTERS: lower case, singular, without article."""
    return tuple(
        _NAMES.get(character) or unicodedata.name(character).lower().removesuffix(" face") for character in CHARACTERS
    )


def with_article(noun: str) -> str:
    """Returns the noun with its article: "an apple" for "apple"."""
    silent = noun.startswith(("uni", "eu", "one"))  # spelled with a vowel, spoken without
    return f"{'an' if noun[0] in 'aeiou' and not silent else 'a'} {noun}"
