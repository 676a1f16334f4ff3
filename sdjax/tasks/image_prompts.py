"""Image prompts: pictures that stand beside the prompt, through an IP-Adapter and an image encoder."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax import pictures
from sdjax.adapters.delta import Strength
from sdjax.adapters.ip_adapter import ImagePromptArrays
from sdjax.checks.arguments import is_sequence, number, shown
from sdjax.config import ModelConfig, UNetConfig, VisionConfig
from sdjax.convert.parts.ip_adapter import LoadedIPAdapter, load_ip_adapter
from sdjax.convert.parts.tower import load_vision
from sdjax.nn.clip_vision import VisionEncoder
from sdjax.nn.ip_adapter import IPAdapter, IPAdapterConfig, KeysAndValues, attention_paths, by_path
from sdjax.pictures import preprocess
from sdjax.pictures.opening import PictureSource
from sdjax.tasks.adapter_spans import timesteps_of
from sdjax.tasks.adapters import AdapterUse
from sdjax.tasks.extra_files import opened, read_once
from sdjax.typing import Image, Params

ENCODER = "image_encoder"  # the folder of the image encoder in the releases of IP-Adapters
SHARES = ("style", "composition")
COMPOSITION = 0.25  # of the composition's cross-attentions but the last
Encoder: TypeAlias = tuple[VisionConfig, Params]
Several: TypeAlias = PictureSource | Sequence[PictureSource]


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePrompt:
    """Pictures that the result follows, as it follows the prompt, through an IP-Adapter.

    `adapter`: a file, or what `sdjax.convert.load_ip_adapter` returns. `image`: a picture or several, as for
    `sdjax.image_to_image`; several stand one after the other, like words. `encoder`: a folder or file of the image
    encoder, or what `sdjax.convert.load_vision` returns; None: the folder image_encoder beside the adapter, or in
    models/ beside its folder.

    `weight`: 0 is without the pictures, 1 their full effect. `start` and `end`, from 0 to 1: they have an effect from
    this share of the steps to that one. `blocks`: "style" or "composition", for the cross-attentions that carry these;
    or one factor for each cross-attention in the order down, middle, up (16 for Stable Diffusion). `mask`: a picture
    of any size, white where they have an effect. `negative`: a picture, or one for each, to keep away from.

    `embedding`: pictures or faces that are encoded already, in place of `image`: [d], [k, d], or [k, n, d] for adapters
    that take tokens. `negative_embedding`: what to keep away from; None: zeros, or for tokens those of a grey picture.

    Raises ValueError for values out of range.
    """

    adapter: LoadedIPAdapter | str | os.PathLike[str]
    image: Several | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    blocks: str | Sequence[float] | None = None
    mask: PictureSource | None = None
    negative: Several | None = None
    encoder: Encoder | str | os.PathLike[str] | None = None
    embedding: Array | np.ndarray | None = None
    negative_embedding: Array | np.ndarray | None = None
    _encoded: dict[ModelConfig, "EncodedPrompt"] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, low, high in ("weight", -10, 10), ("start", 0, 1), ("end", 0, 1):
            value = number(f"an image prompt's {name}", getattr(self, name), low, high)
            object.__setattr__(self, name, value)
        if self.start >= self.end:
            raise ValueError(f"an image prompt ends after its start; got start {self.start:g} and end {self.end:g}")
        if not isinstance(self.adapter, LoadedIPAdapter | str | os.PathLike):
            raise ValueError(
                f"an image prompt's adapter is a file, or what load_ip_adapter returns; got {shown(self.adapter)}"
            )
        if (self.image is None) == (self.embedding is None):
            raise ValueError("an image prompt has either image (pictures) or embedding (encoded ones)")
        if self.negative is not None and self.negative_embedding is not None:
            raise ValueError("an image prompt has either negative (pictures) or negative_embedding (encoded ones)")
        if isinstance(self.blocks, str) and self.blocks not in SHARES:
            raise ValueError(f"blocks is {' or '.join(SHARES)}, or weights; got {shown(self.blocks)}")
        if is_sequence(self.blocks):
            weights = tuple(number("a weight of blocks", one, -10, 10) for one in self.blocks or ())
            object.__setattr__(self, "blocks", weights)

    def encode(self, config: ModelConfig) -> "EncodedPrompt":
        """Returns the pictures encoded, with weights for models of this description.

        Raises ValueError for pictures, embeddings and weights that do not fit, CheckpointError for files that cannot be
        used.
        """
        if config not in self._encoded:
            self._encoded[config] = _encoded(self, config)
        return self._encoded[config]


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """An image prompt with its pictures encoded: `encoded` and, to keep away from, `away`, [k, d] or [k, n, d].

    `weights` are those of the cross-attentions by path, and `weight` that of the prompt. `mask` is [h, w], from 0 to 1.
    """

    adapter: LoadedIPAdapter
    encoded: np.ndarray
    away: np.ndarray
    weights: Mapping[str, float]
    span: tuple[float, float]
    mask: np.ndarray | None
    weight: float = 1.0

    @property
    def uses(self) -> tuple[AdapterUse, ...]:
        """The LoRA that a FaceID adapter was trained with, at the prompt's weight and in its steps."""
        adapter, (start, end) = self.adapter, self.span
        if not adapter.lora:
            return ()
        return (AdapterUse(adapter.lora, Strength(self.weight), adapter.name, start, end),)

    @property
    def likeness(self) -> tuple[int, bool]:
        """What image prompts of one program have in common: the number of tokens, and whether there is a mask."""
        tokens = self.adapter.config.tokens or self.encoded.shape[1]
        return tokens * len(self.encoded), self.mask is not None

    @functools.cached_property
    def keys_and_values(self) -> list[KeysAndValues]:
        """The keys and values of the cross-attentions, [2, n, width]: of the pictures, and to keep away from."""
        both = np.stack([self.encoded, self.away]).astype(np.float32)
        return [
            KeysAndValues(*map(jnp.asarray, one)) for one in _project(self.adapter.config, self.adapter.params, both)
        ]


ImagePromptLike: TypeAlias = ImagePrompt | EncodedPrompt | str


def arrays(
    prompts: Sequence[Sequence[EncodedPrompt]], timesteps: Sequence[np.ndarray], size: tuple[int, int],
    unet: UNetConfig,
) -> tuple[list[ImagePromptArrays], list[ImagePromptArrays]]:  # fmt: skip
    """Returns the image prompts of a batch for the branches of guidance with and without the prompt.

    All pictures have equally many, of equal `likeness`. `timesteps[i]` are those of all calls of picture i. `size` is
    the latent's (height, width).
    """
    own: list[ImagePromptArrays] = []
    away: list[ImagePromptArrays] = []
    for of_slot in zip(*prompts, strict=True):
        during: Any = np.array([timesteps_of(one.span, t) for one, t in zip(of_slot, timesteps)], np.float32)
        masks = [pictures.resize(one.mask, *size, "area") for one in of_slot if one.mask is not None]
        mask: Any = np.stack(masks) if masks else None
        weights: Any = {
            path: np.array([one.weights[path] for one in of_slot], np.float32) for path in of_slot[0].weights
        }
        made = [by_path(one.keys_and_values, unet) for one in of_slot]
        for which, out in enumerate((own, away)):
            keys: Any = {path: np.stack([one[path].keys[which] for one in made]) for path in made[0]}
            values: Any = {path: np.stack([one[path].values[which] for one in made]) for path in made[0]}
            out.append(ImagePromptArrays(keys, values, weights, during, mask))
    return own, away


def block_weights(blocks: str | Sequence[float] | None, unet: UNetConfig) -> dict[str, float]:
    """Returns the factor of each cross-attention by its path (`ImagePrompt.blocks`).

    "composition" are the cross-attentions of the deepest down block that has some: the last one, and a quarter of the
    others. "style" are the other down blocks, and the up blocks but the first cross-attentions of the deepest, all but
    its last. For Stable Diffusion these are the choices of ComfyUI's IPAdapter nodes. Raises ValueError for another
    number of weights.
    """
    paths = [path for path, _ in attention_paths(unet)]
    sides = {side: [path for path in paths if path.startswith(side)] for side in ("down", "mid", "up")}
    ordered = [*sides["down"], *sides["mid"], *sides["up"]]
    if blocks is None:
        return dict.fromkeys(ordered, 1.0)
    if not isinstance(blocks, str):
        if len(blocks) != len(ordered):
            raise ValueError(
                f"blocks has a weight for each of the {len(ordered)} cross-attentions of this model, down, middle and "
                f"up; got {len(blocks)}"
            )
        return dict(zip(ordered, map(float, blocks)))
    deep = [path for path in sides["down"] if _block(path) == _block(sides["down"][-1])] if sides["down"] else []
    first = [path for path in sides["up"] if _block(path) == _block(sides["up"][0])] if sides["up"] else []
    out = dict.fromkeys(ordered, 0.0)
    if blocks == "composition":
        return out | dict.fromkeys(deep, COMPOSITION) | dict.fromkeys(deep[-1:], 1.0)
    out |= dict.fromkeys((*sides["down"], *sides["up"]), 1.0)
    return out | dict.fromkeys((*deep, *first[:-1]), 0.0)


def _block(path: str) -> str:
    return path.partition("/")[0]


def _encoded(prompt: ImagePrompt, config: ModelConfig) -> EncodedPrompt:
    adapter = prompt.adapter
    if not isinstance(adapter, LoadedIPAdapter):
        adapter = read_adapter(os.fspath(adapter), config)
    wanted = tuple(width for _, width in attention_paths(config.unet))
    if adapter.config.attentions != wanted:
        raise ValueError(f"the IP-Adapter {adapter.name} is for another model than {config.name}: it has other widths")
    factors = block_weights(prompt.blocks, config.unet)
    encode = functools.partial(_encode_pictures, prompt, adapter)
    encoded = encode(prompt.image) if prompt.image is not None else _given(prompt.embedding, adapter)
    if prompt.negative is not None:
        away = encode(prompt.negative)
    elif prompt.negative_embedding is not None:
        away = _given(prompt.negative_embedding, adapter)
    elif adapter.config.takes_tokens:
        away = encode(None)
    else:
        away = np.zeros_like(encoded)
    if len(away) not in (1, len(encoded)) or away.shape[1:] != encoded.shape[1:]:
        raise ValueError(
            f"an image prompt has one negative, or one for each of its {len(encoded)} pictures; got {len(away)}"
        )
    away = np.broadcast_to(away, encoded.shape)
    mask = None
    if prompt.mask is not None:
        mask = opened(pictures.open_mask, prompt.mask, "an image prompt's mask").pixels.astype(np.float32) / 255
    weights = {path: prompt.weight * factor for path, factor in factors.items()}
    return EncodedPrompt(adapter, encoded, away, weights, (prompt.start, prompt.end), mask, prompt.weight)


def _encode_pictures(prompt: ImagePrompt, adapter: LoadedIPAdapter, image: Several | None) -> np.ndarray:
    """Returns pictures as the adapter takes them; None is a picture that is grey everywhere, the mean of all."""
    if adapter.config.kind == "face":
        raise ValueError(
            f"the IP-Adapter {adapter.name} (FaceID) takes embeddings of faces, which another program makes "
            "(insightface): give embedding, not image"
        )
    given = prompt.encoder
    if not isinstance(given, tuple):
        given = read_encoder(str(find_encoder(prompt)))
    vision, params = given
    tokens = adapter.config.takes_tokens
    width = vision.width if tokens else vision.projection
    if width != adapter.config.embedding:
        raise ValueError(
            f"the IP-Adapter {adapter.name} takes {adapter.config.embedding} numbers of an image encoder, and this one "
            f"gives {width}: name another by encoder (most take CLIP ViT-H/14)"
        )
    side = vision.image_size
    if image is None:
        pixels = np.zeros((1, side, side, 3), np.float32)
    else:
        several = list(image) if isinstance(image, list | tuple) else [image]
        found = [opened(pictures.open_picture, one, "an image prompt's picture").pixels for one in several]
        if not found:
            raise ValueError("an image prompt has at least one picture")
        pixels = preprocess.clip_pixels(found, side, dialect="huggingface")
    return np.asarray(_encode(vision, tokens, params, pixels))


def _given(embedding: Array | np.ndarray | None, adapter: LoadedIPAdapter) -> np.ndarray:
    """Returns given embeddings as [k, d] or [k, n, d]. Raises ValueError for another shape."""
    out, config = np.asarray(embedding), adapter.config
    rank = 2 + config.takes_tokens
    if out.dtype.kind == "f":
        out = out.astype(np.float32)
        out = out[None] if out.ndim == rank - 1 else out
    wanted = f"[k, n, {config.embedding}]" if config.takes_tokens else f"[k, {config.embedding}]"
    if out.dtype != np.float32 or out.ndim != rank or out.shape[-1] != config.embedding or 0 in out.shape:
        raise ValueError(f"the IP-Adapter {adapter.name} takes embeddings {wanted}; got {out.dtype} {list(out.shape)}")
    if not np.isfinite(out).all():
        raise ValueError("an embedding of an image prompt holds finite numbers; this one does not")
    return out


def find_encoder(prompt: ImagePrompt) -> pathlib.Path:
    """Returns the place of the image encoder. Raises ValueError if none is given and none is near the adapter."""
    if isinstance(prompt.encoder, str | os.PathLike):
        return pathlib.Path(prompt.encoder)
    if isinstance(prompt.adapter, str | os.PathLike):
        folder = pathlib.Path(prompt.adapter).parent
        for place in (folder / ENCODER, folder.parent / "models" / ENCODER):
            if place.is_dir():
                return place
    raise ValueError(
        f"an image prompt needs an image encoder, and there is no folder {ENCODER} near the adapter: name a folder or "
        "file by encoder (for most adapters CLIP ViT-H/14)"
    )


@read_once(4)
def read_adapter(path: str, config: ModelConfig) -> LoadedIPAdapter:
    """Returns the IP-Adapter in a file. It is read once as long as it does not change."""
    return load_ip_adapter(path, config)


@read_once(1)
def read_encoder(path: str) -> Encoder:
    """Returns the image encoder in a folder or file. It is read once as long as it does not change."""
    return load_vision(path)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(config: VisionConfig, tokens: bool, params: Params, pixels: Image) -> Float[Array, "k ..."]:
    return VisionEncoder(config, penultimate=tokens).bind({"params": params})(pixels)


@functools.partial(jax.jit, static_argnums=0)
def _project(config: IPAdapterConfig, params: Params, encoded: Float[Array, "b k ..."]) -> list[KeysAndValues]:
    made = IPAdapter(config).apply({"params": params}, encoded)
    return jax.tree.map(lambda a: a.astype(jnp.float32), made)
