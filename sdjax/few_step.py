"""How distilled models and LoRAs are sampled: sampler, steps and guidance scale of each kind, and how a file is known.

A kind is a word: a name of `RECIPES`, with the number of steps behind a colon where the file is for one number:
"lcm", "hyper:8", "pcm:4". `ModelConfig.few_step` and `sdjax.convert.adapters.info.AdapterInfo.few_step` hold it.

Sources: Luo et al. 2023 (arXiv 2310.04378, 2311.05556); Zheng et al. 2024 (arXiv 2402.19159); Ren et al. 2024 (arXiv
2404.13686); Wang et al. 2024 (arXiv 2405.18407); Sauer et al. 2023 (arXiv 2311.17042); Song et al. 2024 (arXiv
2403.16627), and the authors' own examples.
"""

import dataclasses
import re
from collections.abc import Iterable

from sdjax.spelling import meant

MOST_STEPS = 64


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings that a distilled model was made for. None leaves the sampler's own.

    `title` names the kind. `guidance_scale` 1 is no guidance, 0 in the authors' examples.
    """

    title: str
    sampler: str
    num_steps: int
    guidance_scale: float = 1.0
    eta: float | None = None
    spacing: str | None = None

    def __str__(self) -> str:
        spacing = "" if self.spacing is None else f" with the schedule {self.spacing}"
        eta = "" if self.eta is None else f", eta {self.eta:g}"
        steps = f"{self.num_steps} step{'s'[: self.num_steps > 1]}"
        return f"sampler {self.sampler}{spacing}, {steps}, guidance scale {self.guidance_scale:g}{eta}"


RECIPES: dict[str, Recipe] = {
    "lcm": Recipe("LCM", "lcm", 4),
    "tcd": Recipe("TCD", "tcd", 4, eta=0.3),
    "hyper": Recipe("Hyper-SD", "ddim", 4, spacing="trailing"),
    "hyper-one": Recipe("Hyper-SD of one step", "tcd", 1, eta=1.0),
    "hyper-cfg": Recipe("Hyper-SD with guidance", "ddim", 12, 5.0, spacing="trailing"),
    "pcm": Recipe("PCM", "ddim", 4, spacing="trailing"),
    "pcm-cfg": Recipe("PCM with guidance", "ddim", 4, 7.5, spacing="trailing"),
    "turbo": Recipe("SD-Turbo", "euler", 1, spacing="trailing"),
    "sdxs": Recipe("SDXS", "euler", 1, spacing="trailing"),
}


def recipe_of(word: str) -> Recipe:
    """Returns the recipe of a kind, such as "lcm" or "hyper:8". Raises ValueError for an unknown one."""
    name, colon, steps = word.partition(":")
    if name not in RECIPES or (colon and not (steps.isascii() and steps.isdigit() and 1 <= int(steps) <= MOST_STEPS)):
        raise ValueError(
            f"a kind of distillation is one of {', '.join(RECIPES)}, with the steps behind a colon if they are others "
            f"(1 to {MOST_STEPS}): hyper:8; got {word[:40]!r}{meant(name, RECIPES) if name not in RECIPES else ''}"
        )
    recipe = RECIPES[name]
    return dataclasses.replace(recipe, num_steps=int(steps)) if colon else recipe


def find_word(texts: Iterable[str]) -> str | None:
    """Returns the kind that the names of a file say, such as "hyper:8" for "Hyper-SD15-8steps-lora"; None for others.

    The first text that says one counts. A kind is a word of its own: "falcm" is none.
    """
    for text in texts:
        name = text[:200].lower()
        for pattern, word in _NAMES:
            if re.search(pattern, name):
                return _with_steps(word, name)
    return None


_NAMES = (
    (r"hyper[-_ ]?sd.*cfg", "hyper-cfg"),
    (r"hyper[-_ ]?sd", "hyper"),
    (r"(?<![a-z])pcm(?![a-z]).*lcm[-_ ]?like", "lcm"),
    (r"(?<![a-z])pcm(?![a-z]).*normal[-_ ]?cfg", "pcm-cfg"),
    (r"(?<![a-z])pcm(?![a-z])", "pcm"),
    (r"(?<![a-z])tcd(?![a-z])", "tcd"),
    (r"(?<![a-z])lcm(?![a-z])", "lcm"),
    (r"(?<![a-z])sd[-_ ]?turbo(?![a-z])", "turbo"),
    (r"(?<![a-z])sdxs(?![a-z])", "sdxs"),
)
_COUNTED = ("hyper", "hyper-cfg", "pcm", "pcm-cfg")  # kinds whose files are for one number of steps


def _with_steps(word: str, name: str) -> str:
    steps = re.search(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])", name)
    if word not in _COUNTED or steps is None or not 1 <= int(steps[1]) <= MOST_STEPS:
        return word
    return "hyper-one" if word == "hyper" and int(steps[1]) == 1 else f"{word}:{int(steps[1])}"
