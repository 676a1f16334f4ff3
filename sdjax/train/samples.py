"""Makes pictures of fixed prompts during training. Only this module of training calls the tasks."""

import dataclasses
from typing import Any

import jax
import numpy as np

from sdjax import pictures
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.loading.trainable import Addition, Parts, Trainable
from sdjax.pipeline.model import Pipeline, cast
from sdjax.prompts.added_words import AddedWords
from sdjax.purpose import kind_of
from sdjax.tasks.request import Request
from sdjax.tasks.resolve import check_requests
from sdjax.tasks.results import ImageError
from sdjax.train.config import SamplesConfig
from sdjax.train.metrics import Writers
from sdjax.train.state import TrainState
from sdjax.typing import Params, Pixels


@dataclasses.dataclass(frozen=True)
class SampleMaker:
    """Makes and shows the pictures that a configuration describes. The first process makes them, on its own devices.

    Raises ValueError if the model needs a picture and none is given.
    """

    config: SamplesConfig
    start: Bundle
    log: Writers
    dtype: str
    trainable: Trainable = Parts()

    def __post_init__(self) -> None:
        check_samples(self.config, self.start.config)

    def run(self, state: TrainState) -> dict[str, float]:
        """Makes the pictures of a state's moving average, or of its parameters if it has none. Returns no numbers."""
        params = averaged(state)
        if jax.process_index() == 0:
            pipe = pipeline_of(params, self.start, self.trainable, self.dtype)
            try:
                self.log.pictures(int(state.step), "samples", self.make(pipe), list(self.config.prompts))
            except ImageError as error:  # an untrained model may make one flat colour
                self.log.say(f"no samples of step {int(state.step)}: {error}")
        return {}

    def make(self, pipe: Pipeline) -> Pixels:
        """Returns a picture for each prompt."""
        from sdjax.tasks import depth_to_image, inpaint, text_to_image, upscale, variations

        c = self.config
        options: dict[str, Any] = {
            "num_steps": c.num_steps, "guidance_scale": c.guidance_scale, "seed": c.seed,
            "devices": jax.local_devices()[:1], **c.options,
        }  # fmt: skip
        prompts, image, mask = list(c.prompts), c.image or "", c.mask or ""  # a model that needs them has them
        tasks = {
            "text": lambda: text_to_image.text_to_image(pipe, prompts, **options),
            "inpainting": lambda: inpaint.inpaint(pipe, image, mask, prompts, **options),
            "depth": lambda: depth_to_image.depth_to_image(pipe, image, prompts, **options),
            "upscaling": lambda: upscale.upscale(pipe, image, prompts, **options),
            "unclip": lambda: variations.image_variations(pipe, image, prompts, **options),
        }
        made = tasks[kind_of(pipe.config)]()
        return np.stack([np.asarray(picture) for picture in made])


def averaged(state: TrainState) -> Params:
    """Returns a state's moving average, or its parameters if it has none, as `whole` does."""
    return whole(state.params if state.ema_params is None else state.ema_params)


def pipeline_of(params: Params, start: Bundle, trainable: Trainable, dtype: str) -> Pipeline:
    """Returns the model of trained parameters: the whole networks and the words that were added."""
    added = trainable.added if isinstance(trainable, Addition) else {}
    tokenizer = start.tokenizer()
    return Pipeline(
        start.config, cast(trainable.assemble(params, start.params), dtype),
        AddedWords.to(tokenizer, added) if added else tokenizer, dtype,
    )  # fmt: skip


def check_samples(config: SamplesConfig, model: ModelConfig) -> None:
    """Raises ValueError if samples need a picture or mask that is missing, and for options that cannot be."""
    kind = kind_of(model)
    requests = requests_of(config)
    check_requests(model, requests, None if kind == "text" else [(model.image_size,) * 2] * len(requests))
    if kind != "text" and config.image is None:
        raise ValueError(f'samples.image names the picture that samples of a model for "{kind}" are made from')
    if kind == "inpainting" and config.mask is None:
        raise ValueError("samples.mask names the mask that an inpainting model's samples are made with")
    if kind != "text" and config.image is not None:
        height, width = pictures.open_picture(config.image).pixels.shape[:2]
        if kind == "inpainting" and config.mask is not None:
            pictures.open_mask(config.mask, size=(height, width))


def requests_of(config: SamplesConfig) -> list[Request]:
    """Returns the request of each sample, without its picture and mask.

    Raises ValueError for options that no `sdjax.Request` has, that samples have themselves, or of a wrong value.
    """
    own = {"prompt", *(field.name for field in dataclasses.fields(config))}
    known = {field.name for field in dataclasses.fields(Request)} - own
    unknown = [name for name in config.options if name not in known]
    if unknown:
        raise ValueError(f"samples.options are fields of sdjax.Request besides those of samples; got {unknown[0]!r}")
    each = {name: value for name, value in config.options.items() if isinstance(value, list)}
    for name, values in each.items():
        if len(values) != len(config.prompts) or name in ("height", "width"):
            raise ValueError(
                f"samples.options[{name!r}] is one value, or a list with one for each prompt; sizes are equal"
            )
    fixed: dict[str, Any] = {"num_steps": config.num_steps, "guidance_scale": config.guidance_scale}
    return [
        Request(prompt=prompt, **fixed, **{**config.options, **{name: values[i] for name, values in each.items()}})
        for i, prompt in enumerate(config.prompts)
    ]


def whole(params: Params) -> Params:
    """Returns parameters as numpy arrays, collected from all processes."""
    if jax.process_count() == 1:
        return jax.device_get(params)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(params, tiled=True)
