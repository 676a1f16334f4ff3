"""The reference pictures of a batch as arrays: latents, noise, weights, and the timesteps of each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters.reference import ReferenceArrays
from sdjax.pictures.image import to_float
from sdjax.pipeline.model import make_keys
from sdjax.samplers import Linear
from sdjax.samplers.noise import REFERENCE
from sdjax.tasks.control_arrays import fitted, shares_of, timesteps_of
from sdjax.tasks.group import Group
from sdjax.tasks.references import MODES, Reference


def reference_arrays(group: Group) -> tuple[tuple[ReferenceArrays, ...], tuple[ReferenceArrays, ...]]:
    """Returns the references of a group for the branches of guidance with the prompt, and for those without it.

    All have equally many.
    """
    requests, starts, pipe, how, _ = group
    where: dict[str, Any] = {"mesh": how.mesh, "parallel": how.parallel}
    height, width = requests[0].height, requests[0].width
    keys = jax.vmap(jax.random.fold_in, (0, None))(make_keys([one.seed for one in requests]), REFERENCE)
    alphas = np.stack([one.noise_schedule.alphas_cumprod for one in requests]).astype(np.float32)
    calls = [np.zeros(0) if start.rows is None else np.ravel(start.rows.timestep) for start in starts]
    own, away = [], []
    for k in range(len(requests[0].references)):
        several: list[Reference] = [one.references[k] for one in requests]
        fitting = [to_float(fitted(np.asarray(one.picture), height, width, one.resize)) for one in several]
        during = [
            timesteps_of(one.span, t) if isinstance(request.sampler.rule, Linear) else shares_of(one.span)
            for one, request, t in zip(several, requests, calls, strict=True)
        ]
        weights = np.array([[one.weight * used for used in MODES[one.mode]] for one in several], np.float32)
        made = ReferenceArrays(
            latent=pipe.encode_image(jnp.asarray(np.stack(fitting)), seamless=requests[0].seamless, **where),
            noise=pipe.noise(jax.vmap(jax.random.fold_in, (0, None))(keys, k), height, width, **where),
            alphas_cumprod=alphas,
            attention=weights[:, 0],
            norms=weights[:, 1],
            fidelity=np.zeros(len(several), np.float32),
            during=np.array(during, np.float32),
        )
        own.append(made)
        away.append(dataclasses.replace(made, fidelity=np.array([one.fidelity for one in several], np.float32)))
    return tuple(own), tuple(away)
