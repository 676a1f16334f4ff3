"""Requests: all settings of one picture."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, TypeVar

import jax
import numpy as np

from sdjax.adapters.seamless import check_axes
from sdjax.adapters.table import Chosen, make_settings
from sdjax.checks import arguments
from sdjax.checks.arguments import number, shown, whole
from sdjax.checks.hints import explains_arguments
from sdjax.diffusion.guidance import Guidance, Rule, Rules, check_guidance_scale
from sdjax.diffusion.rules import PLAIN, checked, make_rules
from sdjax.diffusion.windows import check_windows
from sdjax.prompts.clip_skip import read_clip_skip
from sdjax.prompts.padding import PADDINGS
from sdjax.samplers import Sampler
from sdjax.samplers.custom import HasSteps
from sdjax.samplers.known_schedules import ScheduleLike
from sdjax.samplers.sampler import check_eta
from sdjax.tasks.adapters import AdapterLike
from sdjax.tasks.compat import NoiseOptions, check_noise
from sdjax.tasks.computing import ComputingOptions
from sdjax.tasks.controls import ControlLike
from sdjax.tasks.embeddings import EmbeddingLike
from sdjax.tasks.hypernetworks import HypernetworkLike
from sdjax.tasks.image_prompts import ImagePromptLike
from sdjax.tasks.mixtures import MergeDirection, check_merge
from sdjax.tasks.prompting import language_of
from sdjax.tasks.references import ReferenceLike
from sdjax.tasks.regions import RegionLike
from sdjax.tasks.request_fields import checked_array, checked_schedule, checked_snr, checked_text, several

T = TypeVar("T")
Array: TypeAlias = np.ndarray | jax.Array
Each: TypeAlias = T | Sequence[T]  # one for all pictures, or one for each

LISTS = (  # the additions of one picture
    "adapters", "word_embeddings", "hypernetworks", "image_prompts", "controls", "regions", "references",
)  # fmt: skip
ARRAYS = {
    "latents": "hwc",
    "concat": "hwc",
    "prompt_embeds": "nd",
    "negative_prompt_embeds": "nd",
}  # the axes of one picture's arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """The settings of one picture: what it shows and how it is sampled. None means the model's default.

    `negative_prompt`: what the picture should not show. `seed`: seed of the picture's noise; the rest of the batch does
    not matter. `sampler`: a name of `sdjax.samplers.SAMPLERS`, or a sampler. `eta` and `spacing` replace the sampler's
    fields of these names. If the schedule has zero terminal SNR and `spacing` is None, the steps of a sampler given by
    name begin at the last timestep (`sdjax.tasks.resolve.make_sampler`). `num_steps`: the number of steps. A distilled
    model or adapter decides sampler, steps, scale, eta and spacing that are None (`sdjax.few_step`); without one they
    are "ddim" and 50 steps. `guidance_scale`: 1 switches guidance off. `guidance_rescale`: from 0 to 1, how far the
    standard deviation of the guided prediction is moved back to that without guidance (Lin et al. 2023, arXiv
    2305.08891). `guidance`: rules that change guidance: names such as "apg" or "apg+interval"
    (`sdjax.diffusion.rules.GUIDANCE`), rules, or a whole `Guidance`, which has its own scale. `guidance_options`:
    options of named rules, {"eta": 0.5} or {"apg.eta": 0.5}. `height` and `width`: in pixels, multiples of 8 from 64 to
    2048, or to 8192 with `window`.

    `seamless`: "x", "y" or "xy", the axes along which the picture continues over its edges, so that copies of it fit
    together. `patches`: changes of the UNet, a sequence of names of `sdjax.adapters.PATCHES` with their options, such
    as "deep_shrink:factor=2", or of their settings, such as `sdjax.adapters.DeepShrink()`. `window`: side in pixels of
    overlapping windows, in which the network draws a large picture; neighbours share at least `window_overlap` pixels
    (default: half of `window`). `window_blend`: "mean" averages their predictions, "gaussian" gives less weight to a
    window's border (`sdjax.diffusion.windows`).

    `prompt_syntax`: None or "weights" (AUTOMATIC1111's: `(word:1.3)`, `[from:to:when]`, AND, BREAK, and any length),
    "comfyui", or "plain", the text as it stands, cut at 75 tokens. `emphasis`: what weights do, a name of
    `sdjax.prompts.emphasis.RULES`; None is the syntax's own. `comma_backtrack`: how many tokens, from a chunk's last
    comma on, may move to the next chunk (None: A1111's default, 20). `old_prompt_editing`: `[from:to:when]` counts
    steps as A1111 did before version 1.6. `clip_skip`: which block of the text encoder is used, as A1111 counts (1, 2,
    ...), as ComfyUI counts (-1, -2, ...), or with a tool's name ("diffusers:1"). `pad_contexts`: how texts of unequal
    length are made equal, a name of `sdjax.prompts.padding.PADDINGS`; None makes nothing equal.
    `styles`: names of styles in `styles_file`, A1111's table (None: styles.csv). `wildcards`: a folder of files for
    `__name__`. `wildcard_seed`: seed of the choices in `{a|b}` and `__name__`; None is the picture's seed.

    `adapters`: changes of the model for this picture: files of the LoRA family, "FILE" or "FILE:WEIGHT:TEXT WEIGHT", or
    what `sdjax.tasks.adapters.read_use` takes. `lora_dir`: a folder of such files, or several joined by `os.pathsep`,
    from which the prompt may choose by tags: `<lora:name:0.8>`. `loras`: names of files in `lora_dir` that are applied
    besides, as a text "NAME", "NAME:WEIGHT" or "NAME:WEIGHT:TEXT WEIGHT"; several are joined by +. Pictures of one
    batch may have different ones.
    `alpha_0` and `dora` say how files are read (`sdjax.convert.load_adapter`): an alpha of 0 is "none", no change, or
    "rank"; DoRA at weights other than 1 is "linear", part of the way, or "trainer", as it was trained.

    `word_embeddings`: vectors of words (textual inversion): files, "FILE" or "WORD=FILE", or what
    `sdjax.tasks.embeddings.read_embedding` takes. `embedding_dir`: a folder of such files, whose names are words of the
    prompts; in ComfyUI's syntax `embedding:name`. `hypernetworks`: files, "FILE" or "FILE:STRENGTH", or what
    `sdjax.tasks.hypernetworks.read_hypernetwork` takes. `hypernetwork_dir`: a folder of such files for tags
    `<hypernet:name:0.5>` in the prompt.

    `regions`: parts of the picture with prompts of their own: `sdjax.Region`, or texts such as "0,0,0.5,1=a rocket"
    (`sdjax.tasks.regions.parse`).

    `image_prompts`: pictures that stand beside the prompt, through an IP-Adapter: `sdjax.ImagePrompt`, or texts such as
    "ip-adapter_sd15.safetensors,image=cat.png,weight=0.7" (`sdjax.tasks.image_prompt_texts.parse`).

    `controls`: ControlNets and T2I-Adapters that steer the picture by hints: `sdjax.tasks.controls.ControlUse`, or
    texts such as "canny.safetensors:0.8=edges.png" (`sdjax.tasks.controls.read_text`).

    `references`: pictures whose looks the result takes over, through the network's self-attention (reference-only):
    `sdjax.Reference`, or texts such as "cat.png,weight=0.8" (`sdjax.tasks.references.parse`). `style_aligned`: from 0
    to 1, how much the picture takes over the style of the first one of its batch, the reference, which must be
    `style_aligned` too (StyleAligned). None: each picture by itself.

    `merge_with`: the direction to another model (`sdjax.merge_direction`), and `merge` the ratio of the mixture that
    makes this picture. None and 0 are the model itself. Pictures of many ratios share one program.

    `latents`: unit normal noise to start from, [height / 8, width / 8, 4], instead of noise from the seed.
    `concat`: what the network takes beside the noisy latent, [height / 8, width / 8, c], for models whose further
    channels no task makes (`sdjax.purpose.KINDS`); every branch of guidance gets it.
    `prompt_embeds` and `negative_prompt_embeds`: encoded prompts, [77, width of the text encoder] or a multiple of 77,
    instead of texts, as `Pipeline.encode_prompt` returns them.

    `noise_source` says which tool's noise the seed gives, a name of `sdjax.noise.NOISE_SOURCES`; None means "jax", our
    own. `variation_strength` from 0 to 1 mixes the starting noise with that of `variation_seed` (None means 0).
    `seed_resize` (height, width) in pixels: the middle of the starting noise is that of a picture of this size. `ensd`:
    if it is not 0, the noise that a sampler adds in its steps is that of seed + `ensd` (eta noise seed delta).
    `noise_batch` (k, n): the tool draws the noise of n pictures at once from one seed, and this is number k from 0.

    `compat` names a tool whose seed, sampler, strength, prompt and pixels are meant, one of `sdjax.tasks.compat.TOOLS`:
    it chooses fields that are None. `strength_counting` says how a tool counts the steps of a strength and scales the
    first noise, a name of `sdjax.samplers.start.COUNTINGS`; None means "share". `rounding` of pixels is "truncate",
    also for None, or "nearest".

    Raises ValueError for values of the wrong kind or out of range. Sampler, height and width are checked when the
    picture is made, because they depend on the model.
    """

    prompt: str = ""
    negative_prompt: str | None = ""
    seed: int | None = 0
    sampler: str | Sampler | HasSteps | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    guidance: str | Rule | Rules | Guidance | None = None
    guidance_options: Mapping[str, Any] | None = None
    eta: float | None = None
    spacing: str | None = None
    schedule: ScheduleLike | None = None
    schedule_options: Mapping[str, Any] | None = None
    zero_terminal_snr: bool | str | None = None
    prompt_syntax: str | None = None
    emphasis: str | None = None
    comma_backtrack: int | None = None
    old_prompt_editing: bool = False
    clip_skip: int | str | None = None
    pad_contexts: str | None = None
    styles: tuple[str, ...] = ()
    styles_file: str | None = None
    wildcards: str | None = None
    wildcard_seed: int | None = None
    adapters: Sequence[AdapterLike] = ()
    lora_dir: str | None = None
    loras: str | None = None
    alpha_0: str | None = None
    dora: str | None = None
    word_embeddings: Sequence[EmbeddingLike] = ()
    embedding_dir: str | None = None
    hypernetworks: Sequence[HypernetworkLike] = ()
    hypernetwork_dir: str | None = None
    image_prompts: Sequence[ImagePromptLike] = ()
    regions: Sequence[RegionLike] = ()
    controls: Sequence[ControlLike] = ()
    references: Sequence[ReferenceLike] = ()
    style_aligned: float | None = None
    merge: float | None = None
    merge_with: MergeDirection | None = None
    height: int | None = None
    width: int | None = None
    seamless: str | None = None
    patches: Sequence[Chosen] | Chosen | None = ()
    window: int | None = None
    window_overlap: int | None = None
    window_blend: str = "mean"
    latents: Array | None = None
    concat: Array | None = None
    prompt_embeds: Array | None = None
    negative_prompt_embeds: Array | None = None
    noise_source: str | None = None
    variation_seed: int | None = None
    variation_strength: float = 0.0
    seed_resize: tuple[int, int] | None = None
    ensd: int = 0
    noise_batch: tuple[int, int] | None = None
    compat: str | None = None
    strength_counting: str | None = None
    rounding: str | None = None

    def __post_init__(self) -> None:
        scale, negative = self.guidance_scale, "" if self.negative_prompt is None else self.negative_prompt
        checked = {
            "prompt": checked_text("prompt", self.prompt),
            "negative_prompt": checked_text("negative_prompt", negative),
            "seed": arguments.seed(0 if self.seed is None else self.seed),
            "num_steps": None if self.num_steps is None else whole("num_steps", self.num_steps, 1),
            "guidance_scale": None if scale is None else check_guidance_scale(scale),
            "guidance_rescale": number("guidance_rescale", self.guidance_rescale, 0, 1),
            "eta": None if self.eta is None else check_eta(self.eta),
            "spacing": None if self.spacing is None else checked_text("spacing", self.spacing),
            "schedule": checked_schedule(self.schedule, self.schedule_options, self.spacing),
            "schedule_options": None,
            "zero_terminal_snr": checked_snr(self.zero_terminal_snr),
            "seamless": None if self.seamless is None else check_axes(self.seamless),
            "patches": make_settings(self.patches),
            **check_windows(self.window, self.window_overlap, self.window_blend),
            **self._checked_prompting(),
            "merge": check_merge(self.merge, self.merge_with),
            "style_aligned": None if self.style_aligned is None else number("style_aligned", self.style_aligned, 0, 1),
            **{name: checked_array(name, getattr(self, name), axes) for name, axes in ARRAYS.items()},
            **check_noise(vars(self)),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        rules_of(self.guidance, self.guidance_options)  # raises for wrong names and options
        for name in "prompt", "negative_prompt":
            if getattr(self, name) and getattr(self, f"{name}_embeds") is not None:
                raise ValueError(f"give either {name} or {name}_embeds, not both")

    def _checked_prompting(self) -> dict[str, Any]:
        """Returns the fields about prompts, checked."""
        if self.clip_skip is not None:
            read_clip_skip(self.clip_skip)
        language_of(self)
        if self.pad_contexts is not None and self.pad_contexts not in tuple(PADDINGS):
            raise ValueError(f"pad_contexts is one of {', '.join(PADDINGS)}; got {shown(self.pad_contexts)}")
        names = (self.styles,) if isinstance(self.styles, str) else self.styles or ()
        if not arguments.is_sequence(names):
            raise ValueError(f"styles are names, such as ['film', 'night']; got {shown(self.styles)}")
        places = "styles_file", "wildcards", "lora_dir", "embedding_dir", "hypernetwork_dir"
        files = {name: getattr(self, name) for name in places}
        return {
            "styles": tuple(checked_text("a style", name) for name in names),
            **{name: None if value is None else checked_text(name, os.fspath(value)) for name, value in files.items()},
            **{name: several(getattr(self, name)) for name in LISTS},
            "loras": None if self.loras is None else checked_text("loras", self.loras),
            "wildcard_seed": None if self.wildcard_seed is None else arguments.seed(self.wildcard_seed),
        }


def rules_of(guidance: Any, options: Mapping[str, Any] | None) -> tuple[Rule, ...] | Guidance:
    """Returns the rules that a request names or holds, or its whole guidance.

    Raises ValueError for unknown names and options, and for options without names.
    """
    if options is not None and not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise ValueError(f"guidance_options are names and values, such as {{'eta': 0.5}}; got {shown(options)}")
    if guidance is None or isinstance(guidance, str):
        if options and not guidance:
            raise ValueError("guidance_options have no effect without guidance: name a rule, or leave them out")
        return make_rules(guidance or PLAIN, options)
    ruled = isinstance(guidance, Rule | Rules)
    complete = not isinstance(guidance, type) and all(hasattr(guidance, n) for n in ("branches", "init", "combine"))
    if not ruled and not complete:
        what = f"the class {guidance.__name__}: pass {guidance.__name__}()" if isinstance(guidance, type) else None
        raise ValueError(
            f"guidance is a name, such as 'apg' or 'apg+interval', or a rule; got {what or shown(guidance)}"
        )
    if options:
        raise ValueError("guidance_options are for rules given by name: set the fields of the rule instead")
    if isinstance(guidance, Rule | Rules):
        return tuple(checked(rule) for rule in (guidance.rules if isinstance(guidance, Rules) else (guidance,)))
    return guidance


Request.__init__ = explains_arguments(task=False)(Request.__init__)  # type: ignore[method-assign]


class SamplingOptions(TypedDict, total=False):
    """The fields of `Request` about sampling: one value for all pictures, or one for each."""

    sampler: Each[str | Sampler | HasSteps | None]
    num_steps: Each[int | None]
    guidance_scale: Each[float | None]
    guidance_rescale: Each[float]
    guidance: Each[str | Rule | Rules | Guidance | None]
    guidance_options: Each[Mapping[str, Any] | None]
    eta: Each[float | None]
    spacing: Each[str | None]
    schedule: ScheduleLike | Sequence[ScheduleLike | None] | None
    schedule_options: Each[Mapping[str, Any] | None]
    zero_terminal_snr: Each[bool | str | None]
    seamless: Each[str | None]
    patches: Sequence[Chosen] | Chosen | None | Sequence[Sequence[Chosen]]
    window: Each[int | None]
    window_overlap: Each[int | None]
    window_blend: Each[str]


class PromptOptions(TypedDict, total=False):
    """The fields of `Request` about how prompts are read, and adapters.

    `styles` is a list of names, and `adapters`, `word_embeddings`, `hypernetworks` and `image_prompts` are lists of
    these, or one list for each picture.
    """

    prompt_syntax: Each[str | None]
    emphasis: Each[str | None]
    comma_backtrack: Each[int | None]
    old_prompt_editing: Each[bool]
    clip_skip: Each[int | str | None]
    pad_contexts: Each[str | None]
    styles: str | Sequence[str] | Sequence[Sequence[str]]
    styles_file: str | None
    wildcards: str | None
    wildcard_seed: Each[int | None]
    adapters: Sequence[AdapterLike] | Sequence[Sequence[AdapterLike]]
    lora_dir: str | None
    loras: Each[str | None]
    alpha_0: Each[str | None]
    dora: Each[str | None]
    word_embeddings: Sequence[EmbeddingLike] | Sequence[Sequence[EmbeddingLike]]
    embedding_dir: str | None
    hypernetworks: Sequence[HypernetworkLike] | Sequence[Sequence[HypernetworkLike]]
    hypernetwork_dir: str | None
    image_prompts: Sequence[ImagePromptLike] | Sequence[Sequence[ImagePromptLike]]
    regions: Sequence[RegionLike] | Sequence[Sequence[RegionLike]]
    controls: Sequence[ControlLike] | Sequence[Sequence[ControlLike]]
    references: Sequence[ReferenceLike] | Sequence[Sequence[ReferenceLike]]
    style_aligned: Each[float | None]
    merge: Each[float | None]
    merge_with: MergeDirection | None


class SizeOptions(TypedDict, total=False):
    """The fields of `Request` about the size: one value for all pictures, or one for each."""

    height: Each[int | None]
    width: Each[int | None]


class Options(SamplingOptions, PromptOptions, NoiseOptions, ComputingOptions, total=False):
    """The arguments of every task: the fields of `Request` and `Computing`, and `num_images` (pictures per prompt).

    The fields of `Request` have one value for all pictures, or one for each. `seed`: picture i uses seed + i, or entry
    i of a sequence. None means 0, and i for entry i. With one `variation_strength` above 0, all pictures have one seed,
    and picture i uses `variation_seed` + i. With a single prompt, the number of pictures is the length of the
    sequences. `negative_prompt` and `negative_prompt_embeds` are one for all, one for each prompt or one for each
    picture.
    """

    negative_prompt: str | None | Sequence[str | None]
    seed: Each[int | None]
    num_images: int
    latents: Array | Sequence[Array | None] | None
    concat: Array | Sequence[Array] | None
    prompt_embeds: Array | Sequence[Array] | None
    negative_prompt_embeds: Array | Sequence[Array] | None


class SizedOptions(Options, SizeOptions, total=False):
    """The arguments of tasks that let the user choose the size."""


def is_numbers(value: Any) -> bool:
    """Returns whether a value is a sequence of numbers, such as a schedule's sigmas."""
    several = arguments.is_sequence(value) and len(value) > 0
    return several and all(np.isscalar(one) and not isinstance(one, str) for one in value)
