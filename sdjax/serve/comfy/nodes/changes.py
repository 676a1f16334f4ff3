"""Nodes that change a model: its guidance, its attention, its noise schedule."""

import dataclasses

from sdjax.adapters.deep_shrink import DeepShrink
from sdjax.adapters.hypertile import SMALLEST, HyperTile
from sdjax.adapters.token_merging import TokenMerging
from sdjax.diffusion.guidance import Rule
from sdjax.diffusion.rules import (
    APG,
    PAG,
    SAG,
    TCFG,
    CFGNorm,
    CFGZeroStar,
    EpsilonScaling,
    FreeU,
    FreSca,
    Mahiro,
    PerpNeg,
    Rescale,
)
from sdjax.serve.comfy.definitions import choice, link, node, real, switch, whole
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.sampling import with_schedule
from sdjax.serve.comfy.values import Conditioning, Model

MODEL = link("model", "MODEL")
OUT = ("MODEL",)
PREDICTIONS = {"eps": "epsilon", "v_prediction": "v", "x0": "x0"}
FREEU = [real(name, value, 0.0, 10.0) for name, value in (("b1", 1.1), ("b2", 1.2), ("s1", 0.9), ("s2", 0.2))]
FREEU_2 = [real(name, value, 0.0, 10.0) for name, value in (("b1", 1.3), ("b2", 1.4), ("s1", 0.9), ("s2", 0.2))]


def _ruled(model: Model, rule: Rule) -> tuple[Model]:
    return (dataclasses.replace(model, rules=(*model.rules, rule)),)


@node("FreeU", "model_patches/unet", (MODEL, *FREEU), OUT)
def freeu(run: Run, model: Model, b1: float, b2: float, s1: float, s2: float) -> tuple[Model]:
    """Strengthens features and weakens low frequencies of the skips."""
    return _ruled(model, FreeU(b1, b2, s1, s2, "1", "comfyui"))


@node("FreeU_V2", "model_patches/unet", (MODEL, *FREEU_2), OUT)
def freeu_2(run: Run, model: Model, b1: float, b2: float, s1: float, s2: float) -> tuple[Model]:
    """Strengthens features, where they are large, and weakens low frequencies of the skips."""
    return _ruled(model, FreeU(b1, b2, s1, s2, "2", "comfyui"))


@node("PerturbedAttentionGuidance", "model_patches/unet", (MODEL, real("scale", 3.0, 0.0, 100.0)), OUT)
def pag(run: Run, model: Model, scale: float) -> tuple[Model]:
    """Guides away from a pass without self-attention in the middle block."""
    return _ruled(model, PAG(scale)) if scale else (model,)


@node(
    "SelfAttentionGuidance", "_for_testing", (MODEL, real("scale", 0.5, -2.0, 5.0), real("blur_sigma", 2.0, 0.0, 10.0)),
    OUT, title="Self-Attention Guidance",
)  # fmt: skip
def sag(run: Run, model: Model, scale: float, blur_sigma: float) -> tuple[Model]:
    """Guides away from a blurred picture where the network looks."""
    return _ruled(model, SAG(scale, blur_sigma, "epsilon"))


@node("RescaleCFG", "advanced/model", (MODEL, real("multiplier", 0.7)), OUT)
def rescale(run: Run, model: Model, multiplier: float) -> tuple[Model]:
    """Brings the guided answer's contrast back to the unguided one's."""
    return _ruled(model, Rescale(multiplier, "v"))


@node("Mahiro", "_for_testing", (MODEL,), OUT, title="Mahiro CFG")
def mahiro(run: Run, model: Model) -> tuple[Model]:
    """Guides less where both answers agree."""
    return _ruled(model, Mahiro())


@node("CFGZeroStar", "advanced/guidance", (MODEL,), OUT)
def cfg_zero_star(run: Run, model: Model) -> tuple[Model]:
    """Scales the unconditional answer to fit the conditional one."""
    return _ruled(model, CFGZeroStar(zero_steps=0.0, space="x0", fitted="epsilon"))


@node("CFGNorm", "advanced/guidance", (MODEL, real("strength", 1.0, 0.0, 100.0)), OUT)
def cfg_norm(run: Run, model: Model, strength: float) -> tuple[Model]:
    """Limits the guided answer's length to that of the conditional one."""
    return _ruled(model, CFGNorm(strength))


@node("TCFG", "advanced/guidance", (MODEL,), OUT, title="Tangential Damping CFG")
def tcfg(run: Run, model: Model) -> tuple[Model]:
    """Removes the part of the unconditional answer that is across the conditional one."""
    return _ruled(model, TCFG(space="epsilon"))


@node(
    "APG", "sampling/custom_sampling", (MODEL, real("eta", 1.0, -10.0, 10.0), real("norm_threshold", 5.0, 0.0, 50.0),
    real("momentum", 0.0, -5.0, 1.0)), OUT, title="Adaptive Projected Guidance",
)  # fmt: skip
def apg(run: Run, model: Model, eta: float, norm_threshold: float, momentum: float) -> tuple[Model]:
    """Guides across the conditional answer more than along it."""
    return _ruled(model, APG(eta=eta, threshold=norm_threshold, momentum=momentum, form="comfyui", space="x0"))


@node(
    "FreSca", "_for_testing",
    (MODEL, real("scale_low", 1.0, 0.0, 10.0), real("scale_high", 1.25, 0.0, 10.0), whole("freq_cutoff", 20, 1, 10000)),
    OUT,
)  # fmt: skip
def fresca(run: Run, model: Model, scale_low: float, scale_high: float, freq_cutoff: int) -> tuple[Model]:
    """Guides low and high frequencies with scales of their own."""
    return _ruled(model, FreSca(scale_low, scale_high, float(freq_cutoff)))


@node("Epsilon Scaling", "model_patches/unet", (MODEL, real("scaling_factor", 1.005, 0.5, 1.5, 0.001)), OUT)
def epsilon_scaling(run: Run, model: Model, scaling_factor: float) -> tuple[Model]:
    """Divides the predicted noise by a number near 1."""
    return _ruled(model, EpsilonScaling(scaling_factor))


@node(
    "PerpNeg", "_for_testing", (MODEL, link("empty_conditioning", "CONDITIONING"), real("neg_scale", 1.0, 0.0, 100.0)),
    OUT, title="Perp-Neg (DEPRECATED by PerpNegGuider)",
)  # fmt: skip
def perp_neg(run: Run, model: Model, empty_conditioning: Conditioning, neg_scale: float) -> tuple[Model]:
    """Guides away from the part of the negative prompt that is across the positive one."""
    ruled = dataclasses.replace(model, rules=(*model.rules, PerpNeg(neg_scale)), empty=empty_conditioning)
    return (ruled,)


@node("TomePatchModel", "model_patches/unet", (MODEL, real("ratio", 0.3)), OUT)
def token_merging(run: Run, model: Model, ratio: float) -> tuple[Model]:
    """Joins places that look alike in attention: faster, a little less exact."""
    if not ratio:
        return (model,)
    return (dataclasses.replace(model, patches=(*model.patches, TokenMerging(min(ratio, 0.75)))),)


@node(
    "HyperTile", "model_patches/unet",
    (MODEL, whole("tile_size", 256, 1, 2048), whole("swap_size", 2, 1, 128), whole("max_depth", 0, 0, 10),
     switch("scale_depth", False)), OUT,
)  # fmt: skip
def hypertile(
    run: Run, model: Model, tile_size: int, swap_size: int, max_depth: int, scale_depth: bool
) -> tuple[Model]:  # fmt: skip
    """Divides the maps of self-attention into tiles: faster for large pictures, a little less exact."""
    setting = HyperTile(max(tile_size, SMALLEST), swap_size, max_depth + 1, scale_depth)
    return (dataclasses.replace(model, patches=(*model.patches, setting)),)


@node(
    "PatchModelAddDownscale", "model_patches/unet",
    (MODEL, whole("block_number", 3, 1, 32), real("downscale_factor", 2.0, 0.1, 9.0), real("start_percent", 0.0),
     real("end_percent", 0.35), switch("downscale_after_skip", True),
     choice("downscale_method", ("bicubic", "nearest-exact", "bilinear", "area", "bislerp")),
     choice("upscale_method", ("bicubic", "nearest-exact", "bilinear", "area", "bislerp"))), OUT,
    title="PatchModelAddDownscale (Kohya Deep Shrink)",
)  # fmt: skip
def deep_shrink(
    run: Run, model: Model, block_number: int, downscale_factor: float, start_percent: float, end_percent: float,
    downscale_after_skip: bool, downscale_method: str, upscale_method: str,
) -> tuple[Model]:  # fmt: skip
    """Shrinks the map inside the UNet in the first steps, for large pictures without doubled subjects."""
    if (
        not downscale_after_skip
        or downscale_method != upscale_method
        or downscale_method not in ("bicubic", "bilinear")
    ):
        raise ValueError(
            "deep shrink is known here with downscale_after_skip, and one method, bicubic or bilinear, for both ways"
        )
    setting = DeepShrink(downscale_factor, block_number, start_percent, end_percent, downscale_method)
    return (dataclasses.replace(model, patches=(*model.patches, setting)),)


@node(
    "ModelSamplingDiscrete", "advanced/model",
    (MODEL, choice("sampling", tuple(PREDICTIONS)), switch("zsnr", False)), OUT,
)  # fmt: skip
def sampling(run: Run, model: Model, sampling: str, zsnr: bool) -> tuple[Model]:
    """Says what the network predicts, and whether the schedule ends without signal."""
    made = with_schedule(model, prediction=PREDICTIONS[sampling])
    return (dataclasses.replace(made, zero_terminal_snr=zsnr),)
