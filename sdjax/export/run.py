"""Runs an exported model: prompts in, pictures out, without the code of any network.

Nothing of sdjax that is imported here describes a network: only tokenizer, noise schedule and the rows of samplers.

Reading an exported model is safe. Programs are StableHLO in JAX's own format, without pickle. They compute, and may
call only the functions of other libraries that XLA needs for that (`CALLS`); weights are safetensors. Executables are
another matter: see `sdjax.storage.executables`.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jaxtyping import Array

from sdjax import names
from sdjax.checks import arguments
from sdjax.checks.arguments import number, texts, whole
from sdjax.export import layout
from sdjax.export.layout import ExportError, named
from sdjax.pictures.image import to_uint8
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.samplers import SAMPLERS, Linear, Sampler, Start, State, batch, chunks, make_start
from sdjax.samplers.custom import complete
from sdjax.samplers.rows import per_image
from sdjax.samplers.spacing import fitting
from sdjax.schedule import NoiseSchedule
from sdjax.storage import executables
from sdjax.typing import Pixels

# What programs may call outside of XLA: sharding, random numbers and attention on CUDA, kernels on TPU
CALLS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "cu_threefry2x32_ffi", "tpu_custom_call",
         "__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"}  # fmt: skip
_CALL = re.compile(r"custom_call\s*@(?:\"([^\"]*)\"|([\w$.]+))|call_target_name\s*=\s*\"([^\"]*)\"")


class ExportedModel:
    """A model that `sdjax.export.write` wrote, on one device.

    `description` says which size and how many pictures at a time it makes. `compiled_here` is the number of programs
    that had to be compiled.
    """

    def __init__(self, folder: str | os.PathLike[str], *, device: jax.Device | None = None, keep: bool = False) -> None:
        """`keep` writes compiled programs into the folder, for the next time on this computer.

        Raises ExportError for a folder that is not an exported model, that is damaged or made for other platforms.
        """
        self.folder = Path(folder)
        self.description = layout.read(self.folder)
        self.device = jax.local_devices()[0] if device is None else device
        self.schedule = NoiseSchedule(self.description.schedule)
        own = self.folder / layout.TOKENIZER
        try:
            self.tokenizer = Tokenizer.load(own) if own.is_dir() else Tokenizer()
        except ValueError as error:
            raise ExportError(str(error)) from None
        self.compiled_here = 0
        platform = {"gpu": "cuda"}.get(self.device.platform, self.device.platform)
        if f"{platform}/sample" not in self.description.programs:
            known = sorted({name.partition("/")[0] for name in self.description.programs})
            raise ExportError(f"{folder} was exported for {', '.join(known)}, not for {platform}")
        self._weights = self._read_weights()
        exported = {name: self._exported(f"{platform}/{name}") for name in layout.PROGRAMS}
        self._check_fit(exported)
        with jax.default_device(self.device):
            self._run = {name: self._program(f"{platform}/{name}", exported[name], keep) for name in layout.PROGRAMS}

    def text_to_image(
        self, prompt: str | Sequence[str], *, negative_prompt: str = "", seed: int = 0, sampler: str | Sampler = "ddim",
        num_steps: int = 50, guidance_scale: float | None = None, guidance_rescale: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Pixels:  # fmt: skip
        """Returns one picture for each prompt, uint8 [b, height, width, 3]; picture i uses seed + i.

        The pictures are those of `sdjax.text_to_image` with as many pictures at a time, bit by bit on the same device,
        for a guidance scale other than 1 and prompts taken as they stand. Raises ValueError for arguments out of range,
        and for the adaptive sampler.
        """
        prompts = texts("prompt", prompt)
        if not prompts:
            raise ValueError("at least one prompt is needed, got none")
        seeds = arguments.seeds(seed, len(prompts))
        chosen, steps = self.make_sampler(sampler), whole("num_steps", num_steps, 1)
        default = self.description.guidance_scale if guidance_scale is None else guidance_scale
        scale, rescale = number("guidance_scale", default), number("guidance_rescale", guidance_rescale, 0, 1)
        size, done = self.description.batch, 0
        rows = make_start(chosen, self.schedule, steps)
        assert rows.rows is not None
        total = len(rows.rows.index) * -(-len(prompts) // size)
        made, negative = [], self._encoded([negative_prompt] * size)
        for first in range(0, len(prompts), size):
            part, own = prompts[first : first + size], seeds[first : first + size]
            missing = size - len(part)
            contexts = [negative, self._encoded(part + part[-1:] * missing)]
            run = Run(chosen, rows, contexts, _words(own + own[-1:] * missing), scale, rescale)

            def report(calls: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + calls, total)

            made.append(self._decoded(run, self._sampled(run, report))[: len(part)])
            done += len(rows.rows.index)
        return np.concatenate(made)

    def make_sampler(self, sampler: str | Sampler) -> Sampler:
        """Returns the sampler of that name in any tool. Raises ValueError for an unknown or an adaptive one."""
        if isinstance(sampler, str):
            found = names.find_sampler(sampler, more=SAMPLERS)
            sampler = complete(SAMPLERS[found.sampler]())
            spacing = sampler.spacing
            if isinstance(spacing, str):
                spacing = fitting(spacing, self.schedule)
            sampler = dataclasses.replace(sampler, spacing=found.schedule or spacing)
        if sampler.rule != Linear() or sampler.ends_alone:
            raise ValueError(
                "an exported model runs samplers of the linear rule, whose steps are known beforehand; this one has "
                "another rule"
            )
        return sampler

    def _sampled(self, run: "Run", report: Callable[[int], None]) -> dict[str, Array]:
        """Returns the sampler's last state. `report` gets the number of calls made so far."""
        size, start = self.description.batch, run.start
        assert start.rows is not None
        noise = self._run["noise"](run.words)
        x = per_image(np.full(size, start.of_noise), noise) * noise
        told = (run.contexts, np.full(size, run.scale, np.float32), np.full(size, run.rescale, np.float32))
        state = self._run["begin"](self._weights["unet"], x, *told)
        total, each = len(start.rows.index), self.description.chunk
        for done, chunk in zip(range(each, total + each, each), chunks(batch([start.rows] * size), each), strict=True):
            rows = named(jax.tree.map(lambda a: np.ascontiguousarray(a.swapaxes(0, 1)), chunk))
            state = self._run["sample"](self._weights["unet"], rows, state, run.words, *told)
            jax.block_until_ready(state)
            report(min(done, total))
        return state

    def _decoded(self, run: "Run", state: dict[str, Array]) -> Pixels:
        """Returns the pictures of a final state. Raises ExportError if one is not a picture."""
        assert run.start.rows is not None
        x = state["x"]
        end = State(x=x, base=x, past=(), x0=x)
        table = batch([run.start.rows] * self.description.batch)
        latent = run.sampler.final(end, table) * run.start.of_result
        image = np.asarray(self._run["decode"](self._weights["vae"], latent))
        if not np.isfinite(image).all():
            raise ExportError(f"a picture holds values that are not numbers (computed in {self.description.dtype})")
        return to_uint8(image)

    def _encoded(self, prompts: Sequence[str]) -> Array:
        return self._run["text"](self._weights["text"], self._ids(prompts))

    def _ids(self, prompts: Sequence[str]) -> np.ndarray:
        ids = self.tokenizer(prompts, length=self.description.length, pad_token_id=self.description.pad)
        return np.asarray(ids, np.int32)

    def _read_weights(self) -> dict[str, dict[str, Array]]:
        from safetensors import SafetensorError
        from safetensors.flax import load_file

        path = self.folder / layout.WEIGHTS
        if not path.is_file() or path.stat().st_size != self.description.weight_bytes:
            raise ExportError(f"the weights {path} are missing or damaged: export the model again")
        try:
            with jax.default_device(self.device):
                leaves = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise ExportError(f"the weights {path} cannot be read: {error}") from None
        parts: dict[str, dict[str, Array]] = {"text": {}, "unet": {}, "vae": {}}
        for name, leaf in leaves.items():
            part, _, rest = name.partition("/")
            if part in parts:
                parts[part][rest] = jax.device_put(leaf, self.device)
        return parts

    def _exported(self, name: str) -> export.Exported:
        data = layout.program_bytes(self.folder, name, self.description)
        try:
            exported = export.deserialize(bytearray(data))
        except Exception as error:  # flatbuffers and MLIR raise many kinds
            raise ExportError(f"the program {name} cannot be read: {(str(error).splitlines() or [''])[0]}") from None
        platform = name.partition("/")[0]
        if tuple(exported.platforms) != (platform,):
            raise ExportError(f"the program {name} is not one for {platform}: export the model again")
        check_calls(exported.mlir_module(), name)
        return exported

    def _check_fit(self, exported: Mapping[str, export.Exported]) -> None:
        """Raises ExportError unless programs, weights and description fit together, so that every call can be made."""
        about, size = self.description, self.description.batch
        out = {name: _avals(one.out_tree, one.out_avals) for name, one in exported.items()}
        weights = jax.tree.map(_shape, self._weights)
        first = make_start(self.make_sampler("ddim"), self.schedule, 1).rows
        assert first is not None
        chunk = next(iter(chunks(batch([first] * size), about.chunk)))
        rows = {name: _shape(leaf.swapaxes(0, 1)) for name, leaf in named(chunk).items()}
        if tuple(rows) != about.rows:
            raise ExportError("the model was exported by a version of sdjax with other rows: export it again")
        numbers = jax.ShapeDtypeStruct((size,), np.float32)
        words = jax.ShapeDtypeStruct((size, 2), np.uint32)
        told = ([out["text"]] * 2, numbers, numbers)
        state = out["begin"]
        taken = {
            "text": (weights["text"], jax.ShapeDtypeStruct((size, about.length), np.int32)),
            "noise": (words,),
            "begin": (weights["unet"], out["noise"], *told),
            "sample": (weights["unet"], rows, state, words, *told),
            "decode": (weights["vae"], out["noise"]),
        }
        for name, one in exported.items():
            if _avals(one.in_tree, one.in_avals) != (taken[name], {}):
                raise ExportError(f"the program {name} does not fit the weights or the other files: export again")
        picture = jax.ShapeDtypeStruct((size, about.height, about.width, 3), np.float32)
        kept = isinstance(state, dict) and state.get("x") == out["noise"] and out["sample"] == state
        if not kept or out["decode"] != picture:
            raise ExportError("the programs do not fit each other or their description: export the model again")

    def _program(self, name: str, exported: export.Exported, keep: bool) -> Callable[..., Any]:
        """Returns a program ready to run: its kept executable, or compiled now."""
        digest = self.description.programs[name][1]
        path = self.folder / layout.COMPILED / executables.file_name(digest, self.device)
        found = executables.load(path, digest, self.device, exported.in_tree, exported.out_tree)
        if found is not None:
            return found
        args, _ = _avals(exported.in_tree, exported.in_avals)
        compiled = jax.jit(exported.call).lower(*args).compile()
        self.compiled_here += 1
        if keep:
            executables.save(path, compiled, digest, self.device)
        return compiled


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of the pictures of one batch."""

    sampler: Sampler
    start: Start
    contexts: list[Array]  # without and with the prompt
    words: np.ndarray  # the pictures' seeds as two words each
    scale: float
    rescale: float


def _words(seeds: Sequence[int]) -> np.ndarray:
    return np.array([(one >> 32, one & 0xFFFFFFFF) for one in seeds], np.uint32)


def check_calls(module: str, name: str) -> None:
    """Raises ExportError for a program (as StableHLO text) that calls functions other than CALLS."""
    called = {next(filter(None, groups)) for groups in _CALL.findall(module)}
    if called - CALLS:
        raise ExportError(f"the program {name} calls {', '.join(sorted(called - CALLS))}, which programs may not call")


def _avals(tree: Any, avals: Sequence[Any]) -> Any:
    return jax.tree.unflatten(tree, [_shape(aval) for aval in avals])


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
