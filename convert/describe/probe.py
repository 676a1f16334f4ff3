"""Finding out what a network predicts by asking it: the last resort where a file says nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import configs
from sdjax.config import ModelConfig, Prediction
from sdjax.convert.errors import CheckpointError
from sdjax.nn import TextEncoder, UNet
from sdjax.typing import Params

SIDE = 32  # of the latent; a quarter of the work that the models' own 64 would be
EPSILON_ABOVE, V_BELOW = 0.8, 0.5
# Of output_blocks.11.1.transformer_blocks.0.norm1.bias: above it 2-v's, below it 2-base's (ComfyUI, model_detection.py)
V_DEVIATION = 0.09


def probe(config: ModelConfig, params: Params) -> tuple[Prediction, float]:
    """Returns "epsilon" or "v", and the correlation it follows from.

    At the last timestep the network sees noise and hardly anything else. Predicting epsilon, it gives its input back
    (correlation near 1). Predicting v = alpha epsilon - sigma x0, it gives the mean picture, which has nothing to do
    with the input (correlation near alpha = 0.07).

    Raises CheckpointError where the answer is neither, or the network's weights speak against it.
    """
    text, unet = config.text, config.unet
    ids = np.full((1, text.max_length), text.pad_token_id, np.int32)
    ids[0, :2] = text.bos_token_id, text.eos_token_id
    side = max(SIDE, 2 ** (len(unet.channels) - 1))
    x = np.random.Generator(np.random.Philox(0)).standard_normal((1, side, side, unet.in_channels)).astype(np.float32)
    t = np.asarray([config.schedule.num_timesteps - 1], np.float32)
    context = _jit(TextEncoder(text).apply)({"params": params["text"]}, ids)
    scale = None if unet.guidance_dim is None else np.ones(1, np.float32)
    out = np.asarray(_jit(UNet(unet).apply)({"params": params["unet"]}, x, t, context, None, scale), np.float64)
    if not np.isfinite(out).all() or out.std() == 0:
        raise CheckpointError(f"{ADVICE} its network answers noise with no finite picture")
    correlation = float(np.corrcoef(out.ravel(), x[..., : unet.out_channels].ravel())[0, 1])
    if V_BELOW <= correlation <= EPSILON_ABOVE:
        raise CheckpointError(
            f"{ADVICE} its answer to noise correlates with it by {correlation:.2f}, which is neither's"
        )
    answer: Prediction = "epsilon" if correlation > EPSILON_ABOVE else "v"
    whole = configs.get("sd2_v").unet  # whose deviation is known
    if unet == whole:
        block = params["unet"][f"up_blocks_{len(unet.channels) - 1}"][f"attentions_{unet.num_res_blocks}"]
        deviation = float(np.std(np.asarray(block["transformer_blocks_0"]["norm1"]["bias"], np.float64)))
        if (deviation > V_DEVIATION) != (answer == "v"):
            raise CheckpointError(
                f"{ADVICE} its answer to noise says {answer} (correlation {correlation:.2f}), the deviation of a bias "
                f"({deviation:.3f}) says otherwise"
            )
    return answer, correlation


ADVICE = "nothing says what the network predicts, so say it by prediction='epsilon' or 'v':"


def _jit(function: Callable[..., Any]) -> Callable[..., jax.Array]:
    return jax.jit(lambda variables, *args: jnp.asarray(function(_float32(variables), *args), jnp.float32))


def _float32(tree: Params) -> Params:
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)
