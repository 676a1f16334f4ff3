"""The parity kit's image towers, preparation of pictures, noise on image embeddings, priors and safety checkers."""

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.config import TextConfig, VisionConfig
from sdjax.convert.parts.priors import prior_from_diffusers, prior_params
from sdjax.convert.parts.safety import safety_params
from sdjax.diffusion import unclip
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.nn import VisionEncoder
from sdjax.nn.prior import PriorTransformer
from sdjax.nn.safety import SafetyScorer
from sdjax.pictures import preprocess
from sdjax.tasks.prior import PriorNetwork, make_rows
from sdjax.tasks.prior import sample as sample_prior


def vision_config(spec):
    """Returns the image tower of a kit specification."""
    return VisionConfig(
        image_size=spec["image_size"], patch_size=spec["patch"], width=spec["width"], layers=spec["layers"],
        heads=spec["heads"], projection=spec["output_dim"], activation=spec["activation"],
    )  # fmt: skip


def vision(spec, state_dict, pixels):
    """Returns the image embedding [b, d] of prepared pixels [b, 3, size, size], by a tower of released names."""
    config, params = convert.load_vision(state_dict, vision_config(spec))
    encode = jax.jit(VisionEncoder(config).apply)
    return np.asarray(encode({"params": params}, jnp.moveaxis(jnp.asarray(pixels), 1, -1)))


def clip_pixels(image, dialect, size=224):
    """Returns the prepared picture [3, size, size]."""
    return np.moveaxis(preprocess.clip_pixels([image], size, dialect=dialect)[0], -1, 0)


def noise_embedding(embedding, level, noise, mean, std, max_level):
    """Returns the label [b, 2 d] of embeddings with noise on them."""
    return np.asarray(unclip.noise_embedding(embedding, level, noise, mean, std, levels=max_level))


def prior(spec, state_dict, x, t, text_embedding, text_hidden, text_mask):
    """Returns the prior's guess [b, d]."""
    config, params = _prior(spec, state_dict)
    told = (text_embedding, text_hidden, text_mask)
    return np.asarray(PriorTransformer(config).apply({"params": params}, *map(jnp.asarray, (x, t, *told))))


def prior_sample(
    spec, state_dict, num_steps, x_T, noises, text_embedding, text_hidden, text_mask, uncond_embedding, uncond_hidden,
    uncond_mask, scale,
):  # fmt: skip
    """Returns the image embedding [b, d] that sampling from x_T makes, in CLIP's scale."""
    config, params = _prior(spec, state_dict)
    branches = [_conditioning(uncond_embedding, uncond_hidden, uncond_mask),
                _conditioning(text_embedding, text_hidden, text_mask)]  # fmt: skip
    rows, run = make_rows(config, num_steps), jax.jit(sample_prior, static_argnums=0)
    noises = jnp.asarray(noises)
    x = run(PriorNetwork(config), params, rows, jnp.asarray(x_T), noises, branches, ClassifierFree(scale))
    return np.asarray(x * params["clip_std"] + params["clip_mean"])


def _conditioning(embedding, hidden, mask):
    length = np.asarray(mask).sum(1)
    assert (mask == (np.arange(mask.shape[1]) < length[:, None])).all()  # what is hidden is behind the text
    return Conditioning(jnp.asarray(hidden), context_length=jnp.asarray(length), label=jnp.asarray(embedding))


def _prior(spec, state_dict):
    scheduler = dict(spec.get("scheduler", {"class": "UnCLIPScheduler"}))
    scheduler["_class_name"] = scheduler.pop("class")
    text = TextConfig(width=spec["config"]["embedding_dim"], heads=1, max_length=spec["config"]["num_embeddings"])
    config = prior_from_diffusers(spec["config"], scheduler, text)
    return config, prior_params(state_dict, config, "", None)


def safety(spec, state_dict, pixels):
    """Returns flags [b], concepts' scores [b, 17] and special ones' [b, 3] of prepared pixels [b, 3, h, w]."""
    params = safety_params(state_dict, vision_config(spec))
    apply = jax.jit(SafetyScorer(vision_config(spec)).apply)
    scores = apply({"params": params}, jnp.moveaxis(jnp.asarray(pixels), 1, -1))
    return np.asarray(scores.flags), np.asarray(scores.concepts), np.asarray(scores.special)
