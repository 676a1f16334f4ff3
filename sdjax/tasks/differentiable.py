"""Gradients through the sampler: pictures as a differentiable function of noise, contexts and conditionings."""

import dataclasses
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sdjax.checks.hints import explains_arguments
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import conditionings_of
from sdjax.diffusion.guidance import Guidance
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline import programs
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.programs import SampleProgram, VAEProgram
from sdjax.purpose import check_task
from sdjax.samplers import Rows, Sampler, batch
from sdjax.samplers.noise import MadeNoise
from sdjax.samplers.rows import per_image
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.request import SizedOptions
from sdjax.typing import Context, Keys, Latent, NewImage, Params


@struct.dataclass
class Differentiable:
    """All that some pictures depend on, as a pytree. `image` and `latent` are functions of it.

    Replace what the gradient is taken of, and differentiate any loss of the result:

        def loss(noise, run):
            return jnp.mean((run.replace(noise=noise).image() - wanted) ** 2)

        gradient = jax.jit(jax.grad(loss))(run.noise, run)

    `noise` is unit starting noise, `branches` the conditionings of `sdjax.diffusion.denoiser.conditionings_of`, `rows`
    those of the batch. `of_noise` and `of_result` are weights, one for each picture: of the noise in the first x, and
    of the sampler's result in the latent.

    Only the state between rows is stored on the way forward, some latents for each row; each call of the network is
    computed again on the way back. So memory hardly depends on the number of steps, and a gradient costs about three
    times the picture's time.
    """

    noise: Latent
    branches: tuple[Conditioning, ...]
    guidance: Guidance
    rows: Rows
    of_noise: jax.Array
    of_result: jax.Array
    keys: Keys
    made: MadeNoise | None  # the noise of the rows that is not drawn with the keys
    params: Params  # {"network", "vae"}
    program: SampleProgram = struct.field(pytree_node=False)
    sampler: Sampler = struct.field(pytree_node=False)
    decoder: VAEProgram = struct.field(pytree_node=False)

    def with_context(self, context: Context, branch: str = "conditional") -> "Differentiable":
        """Returns the same with another context, [b, n, d], in one branch of guidance."""
        changed = [
            dataclasses.replace(one, context=context) if name == branch else one
            for name, one in zip(conditionings_of(self.guidance), self.branches, strict=True)
        ]
        return dataclasses.replace(self, branches=tuple(changed))

    @property
    def context(self) -> Context:
        """The context of the conditional branch, [b, n, d]."""
        context = self.branches[conditionings_of(self.guidance).index("conditional")].context
        assert context is not None
        return context

    def latent(self) -> Latent:
        """Returns the latents that sampling makes."""
        x = per_image(self.of_noise, self.noise) * self.noise
        network = self.params["network"]
        state = programs.begin(self.program, network, x, self.branches, self.guidance)
        state = programs.sample_with_remat(
            self.program, network, self.rows, state, self.keys, self.branches, self.guidance, self.made
        )
        result = self.sampler.final(state, self.rows)
        return per_image(self.of_result, result) * result

    def image(self) -> NewImage:
        """Returns the pictures, float32 [b, h, w, 3], about in [-1, 1], not clipped."""
        decode = jax.checkpoint(lambda params, latent: programs.decode(self.decoder, params, latent))
        return decode(self.params["vae"], self.latent())


@explains_arguments()
@pinned()
def differentiable(
    pipe: Pipeline, prompt: str | Sequence[str] | None = None, **options: Unpack[SizedOptions]
) -> Differentiable:
    """Returns the pictures of `text_to_image` as a differentiable function of what they depend on.

    The arguments are those of `text_to_image`. All pictures are computed together on one device, so they must have one
    size, and samplers with known steps. Raises ValueError for pictures that do not fit together, and whatever
    `text_to_image` raises.
    """
    check_task(pipe.config, "text_to_image")
    first = [jax.local_devices()[0]] if options.get("devices") is None else list(options["devices"] or ())[:1]
    made = make_batch(pipe, prompt, {**options, "devices": first})
    if len(made.groups()) > 1:
        raise ValueError("pictures that are differentiated together must have one size and one kind of sampler")
    sampler, noise, mesh = made.requests[0].sampler, made.noise(), made.how.mesh
    rows = made.prompts.rows()
    keys, of_rows = made.step_noise(rows, noise)
    guidance = jax.tree.map(jnp.asarray, made.guidance)
    program, params = pipe.sample_program(sampler.rule, noise, guidance, mesh=mesh, **made.network_options)
    return Differentiable(
        noise=noise,
        branches=tuple(made.with_patches(made.conditionings())),
        guidance=guidance,
        rows=jax.tree.map(jnp.asarray, batch(rows)),
        of_noise=jnp.asarray(np.array([start.of_noise for start in made.starts])),
        of_result=jnp.asarray(np.array([start.of_result for start in made.starts])),
        keys=keys,
        made=of_rows,
        params={"network": params, "vae": pipe.on(mesh)["vae"]},
        program=program,
        sampler=sampler,
        decoder=VAEProgram(pipe.config.vae, pipe.dtype, made.seamless or ""),
    )
