"""The table of what can learn, by name."""

from sdjax.loading.trainable.control import ControlTraining
from sdjax.loading.trainable.image_prompt import ImagePromptTraining
from sdjax.loading.trainable.parts import Leaves, Parts
from sdjax.loading.trainable.pivotal import ADAPTERS, PivotalTraining
from sdjax.loading.trainable.protocol import Trainable
from sdjax.loading.trainable.words import WordsTraining

TRAINABLES: dict[str, type[Trainable]] = {
    "parts": Parts, "leaves": Leaves, **ADAPTERS, "textual_inversion": WordsTraining, "pivotal": PivotalTraining,
    "controlnet": ControlTraining, "image_prompt": ImagePromptTraining,
}  # fmt: skip
