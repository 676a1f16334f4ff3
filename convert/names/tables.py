"""Which tensors a file of each layout holds for a model: one entry a stored tensor, generated from the model's shapes.

Reading runs a table forwards, writing the same one backwards. What a file may hold besides is named here too.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from sdjax.config import ModelConfig
from sdjax.convert.names import bert, depth, keys, layouts, vision

Layout = Literal["native", "ldm", "diffusers"]
LAYOUTS: tuple[Layout, ...] = ("native", "ldm", "diffusers")
PARTS = {
    "unet": "UNet", "vae": "autoencoder", "text": "text encoder", "depth": "depth network", "vision": "image tower",
    "noise_stats": "mean and standard deviation of image embeddings",
}  # fmt: skip
OPTIONAL = {  # without which a model is one all the same, and what follows
    "depth": "depth maps have to be given",
    "vision": "embeddings of pictures have to be given",
    "noise_stats": "noise is put on embeddings as if they were 0 and 1",
}


def parts_of(config: ModelConfig) -> tuple[str, ...]:
    """Returns the parts that a model of this description has: of the optional ones, those that it describes."""
    return tuple(part for part in PARTS if part not in OPTIONAL or getattr(config, part) is not None)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A leaf of Flax's tree."""

    path: str  # "unet/conv_in/kernel"
    shape: tuple[int, ...]
    kind: layouts.Kind

    @property
    def part(self) -> str:
        return self.path.partition("/")[0]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stored tensor: its name and shape, and the parameters whose rows it holds one after the other."""

    name: str
    shape: tuple[int, ...]
    parameters: tuple[Parameter, ...]
    pointwise: bool = False
    native: bool = False

    @property
    def part(self) -> str:
        return self.parameters[0].part

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Returns whether a file's tensor may have this shape: some tools store 1x1 convolutions as matrices."""
        if not self.native and self.parameters[0].kind == "matrix" and len(shape) == 4:
            return shape[2:] == (1, 1) and shape[:2] == self.shape[:2]
        return shape == self.shape or (self.pointwise and shape == self.shape[:2])

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns the parameters' arrays in Flax's layout, as views of the stored tensor."""
        if self.native:
            return [array]
        pieces = np.split(array, len(self.parameters)) if len(self.parameters) > 1 else [array]
        return [layouts.to_flax(parameter.kind, piece) for parameter, piece in zip(self.parameters, pieces)]

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Returns the stored tensor of the parameters' arrays: `split` run backwards."""
        if self.native:
            return arrays[0]
        pieces = [
            layouts.to_torch(parameter.kind, array, pointwise=self.pointwise)
            for parameter, array in zip(self.parameters, arrays)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@functools.lru_cache(maxsize=32)
def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Returns the model's parameters in the order of their paths, without allocating any."""
    import jax  # only here: reading a file's tensors takes no networks, and no second of importing

    from sdjax.nn import param_shapes

    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    out = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        out.append(Parameter(name, leaf.shape, layouts.kind_of(name, leaf.shape)))
    return tuple(sorted(out, key=lambda parameter: parameter.path))


@functools.lru_cache(maxsize=32)
def entries(config: ModelConfig, layout: Layout) -> tuple[Entry, ...]:
    """Returns the tensors that a file of this layout holds for the model's parameters."""
    return tuple(_ENTRIES[layout](config))


def _native(config: ModelConfig) -> Iterable[Entry]:
    return (Entry(p.path, p.shape, (p,), native=True) for p in parameters(config))


def _diffusers(config: ModelConfig) -> Iterable[Entry]:
    for p in parameters(config):
        pointwise = _is_v1_projection(p, config)
        yield Entry(
            keys.diffusers_name(p.path), layouts.stored_shape(p.kind, p.shape, pointwise=pointwise), (p,), pointwise
        )


def _ldm(config: ModelConfig) -> Iterable[Entry]:
    stored: dict[str, list[Parameter]] = {}
    for p in parameters(config):
        stored.setdefault(keys.ldm_name(p.path, config), []).append(p)
    for name, group in stored.items():
        group.sort(key=lambda p: next((i for i, row in enumerate(keys.FUSED) if f"/{row}/" in p.path), 0))
        if name == _VISION + vision.PROJECTION:
            group = [dataclasses.replace(p, kind="same") for p in group]  # never transposed, though it is a matrix
        first = group[0]
        pointwise = _is_v1_projection(first, config) or (first.part == "vae" and first.kind == "matrix")
        shape = layouts.stored_shape(first.kind, first.shape, pointwise=pointwise)
        yield Entry(name, (shape[0] * len(group), *shape[1:]), tuple(group), pointwise)


def _is_v1_projection(p: Parameter, config: ModelConfig) -> bool:
    """Returns whether v1 stores this matrix of a UNet's transformer block as a 1x1 convolution."""
    return p.part == "unet" and not config.unet.linear_projection and p.path.endswith(_PROJECTIONS)


_VISION = keys.LDM_PREFIXES["vision"]
_PROJECTIONS = ("/proj_in/kernel", "/proj_out/kernel")


_ENTRIES: dict[str, Callable[[ModelConfig], Iterable[Entry]]] = {
    "native": _native, "ldm": _ldm, "diffusers": _diffusers,
}  # fmt: skip

# Names that older or other tools spell otherwise, and how these tables spell them
_ALIASES: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {
    "native": (),
    "ldm": (
        # Old files have no `text_model.` there, nor has transformers from 5.0 on
        (re.compile(r"^cond_stage_model\.transformer\.(?=embeddings\.|encoder\.|final_layer_norm\.)"),
         "cond_stage_model.transformer.text_model."),
    ),
    "diffusers": (
        (re.compile(r"^text_encoder/(?=embeddings\.|encoder\.|final_layer_norm\.)"), "text_encoder/text_model."),
        (re.compile(r"^(vae/.*\.attentions\.\d+)\.query\."), r"\1.to_q."),
        (re.compile(r"^(vae/.*\.attentions\.\d+)\.key\."), r"\1.to_k."),
        (re.compile(r"^(vae/.*\.attentions\.\d+)\.value\."), r"\1.to_v."),
        (re.compile(r"^(vae/.*\.attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
    ),
}  # fmt: skip


def canonical(name: str, layout: Layout) -> str:
    """Returns the name as the layout's table spells it."""
    for pattern, replacement in _ALIASES[layout]:
        name = pattern.sub(replacement, name)
    return name


# The noise schedule's tables, which follow from a few numbers, and what else is computed and not learned
BUFFERS = re.compile(
    r"((low_scale_model|noise_augmentor)\.)?(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod"
    r"|sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod"
    r"|sqrt_recipm1_alphas_cumprod|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef[12]"
    r"|lvlb_weights|logvar|data_mean|data_std)"
    r"|(cond_stage_model\.transformer\.|text_encoder/)(text_model\.)?embeddings\.position_ids"
    r"|image_encoder/vision_model\.embeddings\.position_ids"
    r"|cond_stage_model\.model\.attn_mask|model_ema\.(decay|num_updates)|v_pred|ztsnr"
)
# Beside a model, for other tasks or for training: kept, not used
_OTHERS: dict[str, re.Pattern[str]] = {
    "native": re.compile(r"$^"),
    "ldm": re.compile(
        BUFFERS.pattern + r"|cond_stage_model\.(model\.)?(logit_scale|text_projection(\.weight)?)"
        r"|first_stage_model\.(loss|model_ema)\..*|embedder\..*|low_scale_model\..*|noise_augmentor\..*"
    ),
    "diffusers": re.compile(BUFFERS.pattern + r"|(safety_checker|image_encoder|image_normalizer|prior\w*)/.*"),
}


def is_known_extra(name: str, layout: Layout, config: ModelConfig) -> bool:
    """Returns whether a tensor that is no parameter belongs there all the same."""
    if layout == "ldm" and keys.is_open_clip(config):  # v2 stops before the tower's last block, which files hold
        last = f"cond_stage_model.model.transformer.resblocks.{config.text.layers}."
        if name.startswith(last):
            return True
    if layout == "ldm" and config.text.kind == "bert" and name in _BERT_UNUSED:
        return True
    if config.vision is not None and name.startswith(_TOWERS[layout]):
        return BUFFERS.fullmatch(name) is not None
    if is_depth_network(name, layout):
        return config.depth is None or name in _DEPTH_UNUSED[layout]  # None: of a kind that is none of ours
    return _OTHERS[layout].fullmatch(name) is not None


_TOWERS = {"native": "vision/", "ldm": f"{_VISION}visual.", "diffusers": f"{keys.COMPONENTS['vision']}/"}


def is_depth_network(name: str, layout: Layout) -> bool:
    """Returns whether a tensor belongs to a depth network, of whatever kind."""
    return name.startswith({"native": "depth/", "ldm": "depth_model.", "diffusers": "depth_estimator/"}[layout])


_BERT_UNUSED = frozenset(f"{keys.LDM_PREFIXES['text']}transformer.{name}" for name in bert.UNUSED)
_DEPTH_UNUSED: dict[str, frozenset[str]] = {
    "native": frozenset(),
    "ldm": frozenset(
        keys.LDM_PREFIXES["depth"] + name for name in (*map(depth.midas_name, depth.UNUSED), *depth.CLASSIFIER)
    ),
    "diffusers": frozenset(f"{keys.COMPONENTS['depth']}/{name}" for name in depth.UNUSED),
}
