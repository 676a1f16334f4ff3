"""Embeddings of words and hypernetworks behind the interface of the parity kit."""

import jax.numpy as jnp
import numpy as np

from sdjax import convert
from sdjax.adapters.hypernetwork import Hypernetworks, Strengths
from sdjax.adapters.patch import patched
from sdjax.nn import UNet
from sdjax.pipeline.contexts import encode_texts, read_text
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.language import Language
from sdjax.prompts.tokenizer import Tokenizer

from tests.parity_models import config_from_spec


def embedding_text(spec, state_dict, files, prompts):
    """Returns the text encoder's output for prompts with the words of files."""
    bundle = convert.load_model(state_dict, config=config_from_spec(spec))
    pipe = Pipeline(bundle.config, bundle.params, Tokenizer())
    words = {file["name"]: convert.load_embedding(file["data"], bundle.config, word=file["name"]) for file in files}
    pipe = pipe.with_embeddings({word: one.vectors for word, one in words.items()})
    texts = [read_text(pipe, prompt, Language("weights", "none")) for prompt in prompts]
    return np.stack(encode_texts(pipe, texts, at_a_time=1))


def hypernetwork(file, x, strength):
    """Returns the inputs of to_k and to_v that a hypernetwork makes of x."""
    net, x = convert.load_hypernetwork(file).network, jnp.asarray(x)
    return tuple(np.asarray(x + strength * net.change(x, which)) for which in (0, 1))


def hypernetwork_unet(spec, state_dict, files, x, t, context):
    """Returns the UNet's output with hypernetworks at their strengths."""
    bundle = convert.load_model(state_dict, config=config_from_spec(spec))
    nets = tuple(convert.load_hypernetwork(file, bundle.config).network for file, _ in files)
    strengths = jnp.asarray([[strength for _, strength in files]] * len(x), jnp.float32)
    with patched([Hypernetworks()], [nets], [Strengths(strengths)]):
        out = UNet(bundle.config.unet).apply(
            {"params": bundle.params["unet"]}, jnp.moveaxis(jnp.asarray(x), 1, -1), jnp.asarray(t), jnp.asarray(context)
        )
    return np.moveaxis(np.asarray(out), -1, 1)
