"""Detects parts of prompts that are written for other tools, and that are plain text in the chosen syntax.

We know the syntax of AUTOMATIC1111's web UI and similar tools (emphasis, scheduling, alternation, BREAK, AND, extra
networks, embeddings), ComfyUI's embeddings, NovelAI's braces, dynamic prompts, compel's weights and Midjourney's
parameters. We ignore text that only looks similar: smileys, (c) 2020, footnotes [1], times (at 10:30), and a remark
(like this) after a word. A bracket after a backslash is literal, as in other tools.
"""

import re
from collections.abc import Iterable

from sdjax.checks.notes import PromptNote, note
from sdjax.prompts.tokenizer import Tokenizer

SHOWN = 3  # pieces that the note names
LONGEST = 1000  # characters that are checked: more than a text encoder sees, and still fast

_ESCAPED = re.compile(r"\\[()\[\]{}]")
_SMILEY = re.compile(r"[:;=]['^o-]?[()\[\]]+|[(\[]+['^o-]?[:;=](?![\w.])|\([\W_]+\)")
_QUOTED = re.compile(r'"[^"]*"|\u201c[^\u201d]*\u201d')
_LETTER = r"[^\W\d_]"
_JOINS = r"(?:a|and|are|as|at|beside|by|for|from|in|is|near|of|on|or|to|under|with)\b"  # behind a remark
_NAMES = (  # embeddings that prompts name most often
    "easynegative(?:v2)?|bad-?hand(?:s-5|v4)|bad_prompt(?:_version2)?|ng_deepnegative_v1_75t|bad-artist(?:-anime)?|"
    r"bad-image-v2-\d+|verybadimagenegative_v1(?:\.\d)?|baddream|unrealisticdream|fastnegativev2|negative_hand|"
    "bad_pictures|badpic|juggernautnegative|cyberrealistic_negative|realisticvision-negative-embedding"
)
_BOTH, _WEB_UI, _NONE = ("weights", "comfyui"), ("weights",), ()
PATTERNS = tuple(  # and the syntaxes that understand them
    (re.compile(pattern), understood)
    for pattern, understood in (
        (r"<[A-Za-z_]\w*:[^<>]+>", _NONE),  # <lora:name:0.8>
        (r"\((?:[^()]|\([^()]*\))*?[^\d\s()]\s*:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)", _BOTH),  # (word:1.3)
        (r"\([^()]*" + _LETTER + r"[^()]*\)(?:\d?\.\d+|\++(?![\w+])|-+(?![\w-]))", _NONE),  # (word)1.2, (word)++
        (r"\(\s*\([^()+*/=^]*" + _LETTER + r"[^()+*/=^]*\)[^()]*\)", _BOTH),  # ((word))
        # (word), at the start of a phrase
        (r"(?:(?<=^)|(?<=[,(\[|]))\s*\([^()]*(?:\d[kK]|" + _LETTER + r"{3})[^()]*\)", _BOTH),
        (r"(?<!\w)\([^()]*" + _LETTER + r"{3}[^()]*\)(?=\s+(?!" + _JOINS + ")" + _LETTER + ")", _BOTH),  # a (red) cat
        (r"\[(?!sic\]|\.\.\.)[^\[\]]*" + _LETTER + r"[^\[\]]*\]", _WEB_UI),  # [word], [a|b], [from:to:0.5]
        (r"\{[^{}|]*" + _LETTER + r"[^{}|]*\}", _NONE),  # {word}
        (r"\{[^{}]*" + _LETTER + r"[^{}]*\}", _BOTH),  # {a|b}
        (r"(?<!\w)__[\w*/.-]+?__(?!\w)", _BOTH),  # __wildcard__
        (r"(?i)(?<!\w)embedding:[\w./-]+", _NONE),
        # an embedding's file
        (r"(?i)(?<![\w.-])(?!\d+\.)[\w-]{1,80}\.(?:pt|pth|safetensors|ckpt|bin)(?!\w)", _NONE),
        (r"(?i)(?<![\w-])(?:" + _NAMES + r")(?![\w-])", _NONE),
        (r"(?<!\w)(?!notepad)" + _LETTER + r"{2,}\+{2,}(?![\w+])", _NONE),  # word++
        (r"(?<!\w)" + _LETTER + r"{2,}-{2,}(?=\s*(?:,|$))", _NONE),  # word--
        (r"[\w)]\s?::\s*(?:-?\d*\.?\d+)?(?=\s|,|$)", _NONE),  # word::2
        (
            r"(?<!\S)--(?:ar|aspect|v|version|q|quality|s|stylize|chaos|no|seed|stop|style|niji|tile|iw|weird|hd)\b",
            _NONE,
        ),
        (r"[\w)]\s*\.(?:and|blend|swap)\(", _NONE),
    )
)
_WORDS = re.compile(r"(?<!\w)(?:BREAK|AND|AND_(?:PERP|SALT|TOPK)|ADD(?:COMM|BASE|COL|ROW))(?!\w)")
_WEB_UI_WORDS = ("BREAK", "AND")


def foreign_syntax(prompt: str, syntax: str = "plain") -> list[str]:
    """Returns the pieces of a prompt that are special in another tool and are not understood in this syntax."""
    text = _SMILEY.sub(" ", _ESCAPED.sub(" ", prompt[:LONGEST]))
    found: dict[int, str] = {}
    taken: list[tuple[int, int]] = []
    for pattern, understood in PATTERNS:
        for match in pattern.finditer(text):
            start, end = match.span()
            if not any(start < b and a < end for a, b in taken):
                taken.append((start, end))
                if syntax not in understood:
                    found[start] = match[0].strip()
    plain = _QUOTED.sub(lambda match: " " * len(match[0]), text)
    for match in _WORDS.finditer(plain):
        if not _is_shouted(plain, match) and not (syntax == "weights" and match[0] in _WEB_UI_WORDS):
            found[match.start()] = match[0]
    return [found[start] for start in sorted(found)]


def _is_shouted(text: str, match: re.Match) -> bool:
    """Returns whether a word stands among others in capitals, as in ROCK AND ROLL."""
    before, after = text[: match.start()].split(), text[match.end() :].split()
    near = [word for word in (before[-1:] + after[:1]) if any(letter.isalpha() for letter in word)]
    return bool(near) and all(word.isupper() for word in near)


def check_prompts(prompts: Iterable[str], syntax: str = "plain") -> None:
    """Gives one note if some prompts use another tool's syntax. The note names the pieces.

    `syntax` is that of the prompts, a name of `sdjax.prompts.language.SYNTAXES`.
    """
    found = list(dict.fromkeys(piece for prompt in prompts for piece in foreign_syntax(prompt, syntax)))
    if not found:
        return
    named = ", ".join(f'"{piece}"' for piece in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    note(
        f"the prompt has another tool's syntax, which is read as plain words here and may spoil the picture: {named}"
        f"{more}; remove it" + (", or take the prompt syntax weights" if syntax == "plain" else ""),
        PromptNote,
    )


def check_lengths(tokenizer: Tokenizer, prompts: Iterable[str], length: int) -> None:
    """Gives a note for each prompt longer than `length` tokens, with the part that the network will not see."""
    for prompt in sorted(set(prompts)):
        if rest := tokenizer.cut(prompt, length=length):
            note(f'a prompt has more than {length - 2} tokens; left out is "{rest}"')
