"""Networks that judge pictures, each as a function from pictures and captions to features."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sdjax.convert.errors import CheckpointError
from sdjax.convert.parts.aesthetic import load_aesthetic
from sdjax.convert.parts.clip_pair import load_clip_pair, load_clip_vision
from sdjax.convert.parts.dinov2 import load_dinov2
from sdjax.convert.parts.inception import load_inception
from sdjax.evaluate import resizing
from sdjax.loading import hub
from sdjax.nn.metrics.clip_pair import VIT_H14, VIT_L14, VIT_L14_336, ClipConfig
from sdjax.nn.networks import NETWORKS
from sdjax.pipeline import placement
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.typing import Params, TokenIds

Picture = UInt8[np.ndarray, "h w 3"]
File = str | os.PathLike[str]
Outputs = dict[str, Float[Array, "b d"]]

BATCH = 16  # pictures at a time of each device


class Extractor(Protocol):
    """Returns the features of pictures of any sizes, by name, float32, one row a picture. Every picture has a caption.

    A row depends on its picture and caption alone. Raises ValueError if there are more or fewer captions.
    """

    @property
    def name(self) -> str:
        """The name in EXTRACTORS."""

    @property
    def identity(self) -> str:
        """The name, and what tells apart extractors of this name, such as a hash of the parameters."""

    def __call__(self, pictures: Sequence[Picture], captions: Sequence[str]) -> Mapping[str, Float[np.ndarray, "n d"]]:
        """Returns {"pool": [n, 2048], "logits": [n, 1008]} and so on."""


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkExtractor:
    """An extractor by a network: pictures are prepared on the host, and a batch is spread over all its devices.

    `head` names the function in HEADS that runs the networks; `config` describes them. `prepare` makes the input of a
    picture. `length` is the number of tokens of a caption; None if captions are not read. Networks run in float32,
    because their published numbers do.
    """

    name: str
    head: str
    config: Any
    params: Params
    prepare: Callable[[Picture], Float[np.ndarray, "size size 3"]]
    length: int | None = None
    placed: placement.Placed = dataclasses.field(default_factory=placement.Placed, repr=False)

    def __call__(self, pictures: Sequence[Picture], captions: Sequence[str]) -> dict[str, Float[np.ndarray, "n d"]]:
        """Returns the features by name. Raises ValueError if pictures and captions are not of one number, or for none.

        Features that are not finite are an error too: a network's file is damaged then.
        """
        if len(pictures) != len(captions) or not pictures:
            raise ValueError(f"every picture has a caption; got {len(pictures)} pictures and {len(captions)} captions")
        mesh = placement.make_mesh()
        params = self.placed.get(self.params, mesh, functools.partial(placement.replicate, mesh=mesh))
        run = placement.compiled(_run, (self.head, self.config), mesh, (False, True, True), "jit")
        parts: list[dict[str, np.ndarray]] = []
        share = -(-len(pictures) // mesh.size)
        size = mesh.size * min(BATCH, 2 ** (share - 1).bit_length())  # few shapes are compiled
        for start in range(0, len(pictures), size):
            chosen = slice(start, start + size)
            pixels = placement.fill([self.prepare(picture) for picture in pictures[chosen]], size)
            ids = self._tokens(placement.fill(list(captions[chosen]), size))
            batch = placement.split((np.stack(pixels), ids), mesh)
            found = placement.host(run(params, *batch))
            parts.append({name: rows[: len(pictures[chosen])] for name, rows in found.items()})
        features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name, rows in features.items():
            if not np.isfinite(rows).all():
                raise ValueError(f"{EXTRACTORS[self.name].title} gives features ({name}) that are not finite")
        return features

    @functools.cached_property
    def identity(self) -> str:
        """The name, and a hash of the parameters: other files have other ones."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.asarray(leaf).tobytes())
        return f"{self.name} {digest.hexdigest()[:16]}"

    def _tokens(self, captions: list[str]) -> TokenIds:
        if self.length is None:
            return np.zeros((len(captions), 1), np.int32)
        # The padding is hidden: towers are causal, and their output is the end token's
        return Tokenizer()(captions, length=self.length, pad_token_id=0)


def _run(static: tuple[str, Any], params: Params, pixels: Array, ids: TokenIds) -> Outputs:
    head, config = static
    with jax.default_matmul_precision("highest"):
        return HEADS[head](config, params, pixels, ids)


def _apply(network: str, config: Any, params: Params, *inputs: Array | TokenIds) -> Any:
    return NETWORKS[network].build(config).apply({"params": params}, *inputs)


def _inception(config: Any, params: Params, pixels: Array, ids: TokenIds) -> Outputs:
    pool, logits = _apply("inception", config, params, pixels)
    return {"pool": pool, "logits": logits}


def _dinov2(config: Any, params: Params, pixels: Array, ids: TokenIds) -> Outputs:
    return {"class": _apply("dinov2", config, params, pixels)}


def _vision(config: Any, params: Params, pixels: Array, ids: TokenIds) -> Outputs:
    return {"image": _apply("vision", config, params, pixels)}


def _clip(config: Any, params: Params, pixels: Array, ids: TokenIds) -> Outputs:
    image, text, _ = _apply("clip_pair", config, params, pixels, ids)
    return {"image": image, "text": text}


def _preference(config: Any, params: Params, pixels: Array, ids: TokenIds) -> Outputs:
    """Returns CLIP's logit of every picture and its own text. Source: yuvalkirstain/PickScore, README."""
    image, text, scale = _apply("clip_pair", config, params, pixels, ids)
    image, text = (one / jnp.linalg.norm(one, axis=-1, keepdims=True) for one in (image, text))
    return {"score": jnp.exp(scale) * (image * text).sum(-1, keepdims=True)}


def _aesthetic(config: Any, params: Params, pixels: Array, ids: TokenIds) -> Outputs:
    vision, predictor = config
    image = _apply("vision", vision, params["vision"], pixels)
    return {"score": _apply("aesthetic", predictor, params["predictor"], image)}


HEADS: Mapping[str, Callable[[Any, Params, Array, TokenIds], Outputs]] = {
    "inception": _inception, "dinov2": _dinov2, "vision": _vision, "clip": _clip, "preference": _preference,
    "aesthetic": _aesthetic,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of extractor: its title, its files by the names of their flags, and what loads it from these."""

    title: str
    files: tuple[str, ...]
    load: Callable[..., NetworkExtractor]


def _load_inception(prepare: Callable[..., Any], name: str, file: File) -> NetworkExtractor:
    return NetworkExtractor(name, "inception", *load_inception(file), prepare)


def _load_dinov2(name: str, file: File) -> NetworkExtractor:
    return NetworkExtractor(name, "dinov2", *load_dinov2(file), resizing.dinov2)


def _load_clip(config: ClipConfig, head: str, what: str, name: str, file: File) -> NetworkExtractor:
    prepare = functools.partial(resizing.clip, size=config.vision.image_size)
    return NetworkExtractor(
        name, head, config, load_clip_pair(file, config, what), prepare, length=config.text.max_length
    )


def _load_cmmd(name: str, file: File) -> NetworkExtractor:
    vision = VIT_L14_336.vision
    tower = load_clip_vision(file, vision, "OpenAI's CLIP ViT-L/14@336px")
    return NetworkExtractor(name, "vision", vision, tower, resizing.cmmd)


def _load_aesthetic(name: str, file: File, clip: File) -> NetworkExtractor:
    (predictor, head), vision = load_aesthetic(file), VIT_L14.vision
    tower = load_clip_vision(clip, vision, "OpenAI's CLIP ViT-L/14")
    if predictor.width != vision.projection:
        raise CheckpointError(f"it takes embeddings of {predictor.width}; CLIP's has {vision.projection}", file)
    params = {"vision": tower, "predictor": head}
    return NetworkExtractor(name, "aesthetic", (vision, predictor), params, resizing.clip)


EXTRACTORS: Mapping[str, Kind] = {
    "inception": Kind(
        "FID's Inception v3, resized as pytorch-fid does", ("inception",),
        functools.partial(_load_inception, resizing.inception_pytorch),
    ),
    "inception-tensorflow": Kind(
        "FID's Inception v3, resized as TensorFlow 1 does", ("inception",),
        functools.partial(_load_inception, resizing.inception_tensorflow),
    ),
    "inception-clean": Kind(
        "FID's Inception v3, resized as clean-fid does", ("inception",),
        functools.partial(_load_inception, resizing.inception_clean),
    ),
    "dinov2": Kind("DINOv2", ("dinov2",), _load_dinov2),
    "clip-l14": Kind(
        "OpenAI's CLIP ViT-L/14", ("clip",),
        functools.partial(_load_clip, VIT_L14, "clip", "OpenAI's CLIP ViT-L/14"),
    ),
    "clip-l14-336": Kind("OpenAI's CLIP ViT-L/14@336px", ("clip336",), _load_cmmd),
    "openclip-h14": Kind(
        "OpenCLIP's ViT-H/14", ("openclip",), functools.partial(_load_clip, VIT_H14, "clip", "OpenCLIP's ViT-H/14")
    ),
    "aesthetic": Kind("LAION's aesthetic predictor on CLIP ViT-L/14", ("aesthetic", "clip"), _load_aesthetic),
    "pickscore": Kind(
        "PickScore", ("pickscore",), functools.partial(_load_clip, VIT_H14, "preference", "PickScore (CLIP ViT-H/14)")
    ),
}  # fmt: skip
"""By name. The command line has a flag for each file, such as --inception FILE."""

FILES: Mapping[str, str] = {
    "inception": "pytorch-fid's pt_inception-2015-12-05-6726825d.pth",
    "dinov2": "dinov2_vitl14_pretrain.pth of facebookresearch/dinov2, or the folder facebook/dinov2-large",
    "clip": "OpenAI's ViT-L-14.pt, or the folder openai/clip-vit-large-patch14",
    "clip336": "OpenAI's ViT-L-14-336px.pt, or the folder openai/clip-vit-large-patch14-336",
    "openclip": "open_clip_model.safetensors of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, or its folder",
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth of improved-aesthetic-predictor",
    "pickscore": "the folder yuvalkirstain/PickScore_v1",
}
"""Which file each flag takes, as the command line and messages say it."""


def load_extractor(name: str, files: Mapping[str, File]) -> NetworkExtractor:
    """Returns the extractor of a name of EXTRACTORS, from its files by the names of their flags.

    A file may also be a folder, or a repository of the hub, as `hub.resolve` takes it.

    Raises ValueError for an unknown name, and CheckpointError with one sentence for a missing or wrong file.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"a network that judges is one of {', '.join(EXTRACTORS)}; got {name!r}")
    kind = EXTRACTORS[name]
    missing = [flag for flag in kind.files if files.get(flag) is None]
    if missing:
        needed = "; ".join(f"--{flag} ({FILES[flag]})" for flag in missing)
        raise CheckpointError(f"{kind.title} needs a file that is not given: {needed}")
    return kind.load(name, *(hub.resolve(files[flag]) for flag in kind.files))
