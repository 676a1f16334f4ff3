"""Pipelines for the command line that need no checkpoint."""

import types

import numpy as np
import pytest

import sdjax
from sdjax.config import ModelConfig, ScheduleConfig
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.results import joined


def of_picture(value: object, i: int) -> object:
    """Returns picture i's value of an option with one value for all, or one for each."""
    return value[i] if isinstance(value, list) else value


class Fake:
    """Stands in for `sdjax.load` and `sdjax.text_to_image`: pictures are noise drawn from the seed."""

    def __init__(self) -> None:
        self.loaded: list[tuple] = []
        self.made: list[dict] = []
        self.error: BaseException | None = None
        schedule = ScheduleConfig(prediction="v")
        self.config = ModelConfig(name="sd2_v", schedule=schedule, guidance_scale=9.0, image_size=96)
        self.notices: tuple[str, ...] = ()

    def load(self, path: str | None, **options: object) -> types.SimpleNamespace:
        options.pop("check")(self.config)
        self.loaded.append((str(path), options))
        dtype = options["dtype"] or "bfloat16"
        return types.SimpleNamespace(
            config=self.config, tokenizer=Tokenizer(), dtype=dtype, source=path, notices=self.notices,
            schedule=NoiseSchedule(self.config.schedule),
        )  # fmt: skip

    def text_to_image(self, pipe: object, prompts: list[str], **options: object) -> np.ndarray:
        if self.error is not None and self.made:
            raise self.error
        self.note(prompts, **options)
        made = []
        for i, seed in enumerate(options["seed"]):
            sides = [of_picture(options[name], i) or self.config.image_size for name in ("height", "width")]
            made.append(np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8))
        return joined(made)

    def from_pictures(self, pipe: object, images: list[np.ndarray], *more: object, **options: object) -> np.ndarray:
        """Stands in for the tasks that are given pictures: inverts them."""
        if len(more) == 2:
            options["mask"] = more[0]
        self.note(more[-1], images=images, **options)
        return [255 - image for image in images]

    def note(self, prompts: list[str], **options: object) -> None:
        steps = max(of_picture(options["num_steps"], i) for i in range(len(prompts)))
        options["progress"](steps, steps)
        self.made.append({"prompts": prompts, **options})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Fake:
    """Puts a Fake in the place of the model, and the test into a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    fake = Fake()
    monkeypatch.setattr(sdjax, "load", fake.load, raising=False)
    for task in "text_to_image", "two_pass":
        monkeypatch.setattr(sdjax, task, fake.text_to_image, raising=False)
    for task in "image_to_image", "inpaint", "outpaint", "detail":
        monkeypatch.setattr(sdjax, task, fake.from_pictures, raising=False)
    return fake
