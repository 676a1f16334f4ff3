"""Fills in the model's defaults in requests (sampler, scale, size), and checks them against the model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdjax import names, samplers
from sdjax.adapters.t_gate import TGate
from sdjax.adapters.table import Setting, make_settings
from sdjax.checks.arguments import number, whole
from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.convert.adapters.embedding import LoadedEmbedding
from sdjax.diffusion.guidance import SCALE_AS_INPUT, WITHOUT_GUIDANCE, ClassifierFree, Guidance, note_unguided
from sdjax.diffusion.rules import And, Interval
from sdjax.diffusion.windows import Windows
from sdjax.noise import JAX
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.clip_skip import layers_used
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.purpose import GIVEN, KINDS, kind_of
from sdjax.samplers import tools
from sdjax.samplers.custom import HasSteps, complete
from sdjax.samplers.schedules import SigmaList, TimestepList
from sdjax.samplers.spacing import fitting
from sdjax.samplers.tool_sampler import ToolSampler
from sdjax.schedule import LAST_ALPHAS, NoiseSchedule
from sdjax.spelling import meant
from sdjax.tasks import adapters, compat, distilled, hypernetworks
from sdjax.tasks.adapter_files import Conventions
from sdjax.tasks.adapters import AdapterUse, named_uses, read_use, uses_in_prompt
from sdjax.tasks.combinations import check_combinations
from sdjax.tasks.controls import ControlUse, read_control
from sdjax.tasks.embeddings import embeddings_in
from sdjax.tasks.hypernetworks import HypernetworkUse, hypernetworks_in_prompt, read_hypernetwork
from sdjax.tasks.image_prompt_texts import read_image_prompt
from sdjax.tasks.image_prompts import EncodedPrompt
from sdjax.tasks.mixtures import merge_uses
from sdjax.tasks.prompting import Typed, final_texts, language_of
from sdjax.tasks.references import Reference, read_reference
from sdjax.tasks.regions import ResolvedRegion, read_region
from sdjax.tasks.request import Request, rules_of

USUAL_SAMPLER, USUAL_STEPS = "ddim", 50  # of models that are not distilled
SIDES = (64, 2048)  # smallest and largest height and width, in pixels ...
WIDEST = 8192  # ... and the largest of a picture that is made in windows
STEP = 8  # heights and widths are multiples of this


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Resolved(Request):
    """A request with nothing left to choose.

    `noise_schedule` is the model's, rescaled if the request asks for it. `windows` are those of the latent, None if the
    picture is made as a whole.
    """

    negative_prompt: str
    seed: int
    sampler: samplers.Sampler
    num_steps: int
    guidance_scale: float
    guidance: Guidance  # of this picture alone: its leaves are single numbers
    guidance_options: None
    height: int
    width: int
    noise_source: str
    strength_counting: str
    rounding: str
    patches: tuple[Setting, ...]
    adapters: tuple[AdapterUse, ...]
    lora_dir: None
    loras: None
    word_embeddings: tuple[LoadedEmbedding, ...]
    embedding_dir: None
    hypernetworks: tuple[HypernetworkUse, ...]
    hypernetwork_dir: None
    image_prompts: tuple[EncodedPrompt, ...]
    regions: tuple[ResolvedRegion, ...]
    controls: tuple[ControlUse, ...]
    references: tuple[Reference, ...]
    noise_schedule: NoiseSchedule
    windows: Windows | None


def resolve(
    pipe: Pipeline, requests: Sequence[Request], sizes: Sequence[tuple[int, int]] | None = None
) -> list[Resolved]:
    """Returns the requests with None replaced by the model's defaults, and sampler names replaced by samplers.

    Prompts have their styles added and their random choices made, and tags of adapters are taken out of them. Equal
    samplers become one object. `sizes` are the pictures' (height, width) if the task decides them. Raises ValueError
    for values that the model or the sampler does not support.
    """
    if sizes is None:
        sizes = [check_size(pipe.config, one.height, one.width, windowed=one.window is not None) for one in requests]
    made: dict[Any, samplers.Sampler] = {}
    out = []
    requests = [compat.as_tool_reads(request) for request in requests]
    texts = final_texts(requests)
    for request, (height, width), (prompt, negative) in zip(requests, sizes, texts, strict=True):
        told = compat.chosen(request.compat, vars(request))
        read_as = Conventions(told["alpha_0"], told["dora"])
        given = tuple(read_use(one, pipe.config, read_as) for one in request.adapters)
        given += named_uses(request.loras, request.lora_dir, pipe.config, read_as)
        _, tagged = uses_in_prompt(prompt, request.lora_dir, pipe.config, request.num_steps or USUAL_STEPS, read_as)
        request = distilled.with_defaults(request, pipe.config, given + tagged)
        chosen = USUAL_SAMPLER if request.sampler is None else request.sampler
        spacing = request.spacing if request.schedule is None else request.schedule
        noise_schedule = rescaled(pipe.schedule, request.zero_terminal_snr)
        name = chosen if isinstance(chosen, str) else id(chosen)
        named = (name, request.eta, spacing, noise_schedule, request.compat)
        if named not in made:
            made[named] = make_sampler(chosen, noise_schedule, request.compat, eta=request.eta, spacing=spacing)
        scale = pipe.config.guidance_scale if request.guidance_scale is None else request.guidance_scale
        chosen_sampler = made[named]
        factor = chosen_sampler.recipe.scale_factor if isinstance(chosen_sampler, ToolSampler) and scale != 1 else 1
        steps = counted(made[named], USUAL_STEPS if request.num_steps is None else request.num_steps)
        prompt, tagged = uses_in_prompt(prompt, request.lora_dir, pipe.config, steps, read_as)
        image_prompts = tuple(read_image_prompt(one, pipe.config) for one in request.image_prompts)
        uses = given + tagged + merge_uses(request.merge, request.merge_with)
        uses += tuple(
            use for one, asked in zip(image_prompts, request.image_prompts) if one is not asked for use in one.uses
        )  # those of encoded prompts are among the adapters
        prompt, tagged_nets = hypernetworks_in_prompt(prompt, request.hypernetwork_dir, pipe.config, steps)
        nets = tuple(read_hypernetwork(one, pipe.config) for one in request.hypernetworks) + tagged_nets
        adapters.check_uses(uses)
        hypernetworks.check_uses(nets)
        typed = Typed(**{name: getattr(request, name) for name in Typed._fields})
        regions = tuple(
            read_region(one, pipe.config, (height, width), negative, typed, request.lora_dir, steps, read_as)
            for one in request.regions
        )
        own_texts = [text for one in regions for text in (one.prompt, one.negative_prompt)]
        words = embeddings_in(
            (prompt, negative, *own_texts), request.word_embeddings, request.embedding_dir,
            [use.embeddings for use in uses], pipe.config, language_of(request).syntax, pipe.words,
        )  # fmt: skip
        joined = tuple(weight for _, weight in language_of(request).joined(prompt))
        chosen_by_model = {
            "prompt": prompt, "negative_prompt": negative, "styles": (),
            "sampler": made[named], "guidance_scale": scale, "height": height, "width": width, "schedule": None,
            "spacing": None, "num_steps": steps,
            "guidance": make_guidance(
                pipe, request, distilled.outer_scale(pipe.config, scale) * factor, made[named], joined
            ),
            "guidance_options": None,
            "adapters": uses, "merge": None, "merge_with": None, "lora_dir": None, "loras": None,
            "word_embeddings": words, "embedding_dir": None,
            "hypernetworks": nets, "hypernetwork_dir": None,
            "regions": regions,
            "image_prompts": image_prompts,
            "controls": tuple(read_control(one, pipe) for one in request.controls),
            "references": tuple(map(read_reference, request.references)),
            "noise_schedule": noise_schedule, "windows": find_windows(pipe.config, request),
        }  # fmt: skip
        out.append(Resolved(**{**vars(request), **chosen_by_model, **told}))
        check_combinations(out[-1])
        for setting in out[-1].patches:
            setting.check(pipe.config.unet)
        if out[-1].noise_batch is not None and out[-1].noise_source == JAX:
            raise ValueError(
                "noise_batch has no effect on jax's noise, which is drawn for each picture alone: choose another "
                "noise_source"
            )
        check_arrays(pipe.config, out[-1])
    return out


def check_requests(
    config: ModelConfig, requests: Sequence[Request], sizes: Sequence[tuple[int, int]] | None = None
) -> None:
    """Raises ValueError for requests that pictures of a model cannot have (`resolve`). Needs no parameters."""
    resolve(Pipeline(config, {}, Tokenizer()), requests, sizes)


def make_guidance(
    pipe: Pipeline, request: Request, scale: float, sampler: samplers.Sampler, joined: Sequence[float] = (1.0,)
) -> Guidance:
    """Returns the guidance of one picture. Raises ValueError if the model or the sampler does not support it.

    `joined` are the weights of the prompts that AND joins.
    """
    rules = rules_of(request.guidance, request.guidance_options)
    gates = gates_of(request)
    if not isinstance(rules, tuple):
        if request.guidance_scale is not None or request.guidance_rescale:
            raise ValueError(
                "guidance_scale and guidance_rescale have no effect with a whole guidance, which has its own scale: "
                "leave them out"
            )
        if joined != (1.0,):
            note("AND and the weight of a whole prompt have no effect with a whole guidance, only with rules")
        if gates and isinstance(rules, ClassifierFree):
            return dataclasses.replace(rules, rules=(*rules.rules, *gates))
        return rules
    if joined != (1.0,):
        rules = (And(np.asarray(joined, np.float32), len(joined)), *rules)
    for rule in rules:
        rule.check(pipe.config.unet)
        if rule.counts_steps and not isinstance(sampler.rule, samplers.Linear):
            raise ValueError(
                f"the rule {type(rule).__name__} of guidance counts steps, and the steps of the sampler "
                f"{type(sampler).__name__} are not known beforehand: choose another sampler, or other options"
            )
    if pipe.weak is None and any(rule.needs_weak for rule in rules):
        raise ValueError("autoguidance needs a second, weaker model: make the pipeline with pipe.guided_by(weaker)")
    if scale == 1 and not rules and not sampler.uses_unconditional:
        gates = []  # there is no guidance that would end
    return ClassifierFree(scale, request.guidance_rescale, (*rules, *gates))


def gates_of(request: Request) -> list[Interval]:
    """Returns the rules that end guidance where patches ask for it (T-GATE)."""
    return [Interval(stop=one.gate) for one in make_settings(request.patches) if isinstance(one, TGate)]


def note_unused(requests: Sequence[Resolved], config: ModelConfig) -> None:
    """Notes what the pictures ask for without effect, because there is no guidance."""
    ruled = [(request, request.guidance) for request in requests if isinstance(request.guidance, ClassifierFree)]
    unguided = [
        request for request, guidance in ruled
        if guidance.ignores_negative and not request.sampler.uses_unconditional
    ]  # fmt: skip
    note_unguided(
        negative_prompt=any(request.negative_prompt for request in unguided),
        negative_prompt_embeds=any(request.negative_prompt_embeds is not None for request in unguided),
        guidance_rescale=any(request.guidance_rescale for request, g in ruled if g.scale == 1 and request in unguided),
        guidance=any(g.scale == 1 and _is_idle(request, g) for request, g in ruled),
        why=WITHOUT_GUIDANCE if config.unet.guidance_dim is None else SCALE_AS_INPUT,
    )


def _is_idle(request: Resolved, guidance: ClassifierFree) -> bool:
    """Returns whether rules are asked for, and have no effect at scale 1.

    A sampler such as CFG++ uses the unconditional output there too, and rules that rest take it away in some steps.
    """
    asked = guidance.rules[: max(len(guidance.rules) - len(gates_of(request)), 0)]
    rests = request.sampler.uses_unconditional and any(rule.rests for rule in asked)
    return bool(asked) and not guidance.works_unguided and not rests


def check_arrays(config: ModelConfig, request: Resolved) -> None:
    """Raises ValueError if starting noise or an encoded prompt does not have the model's shape."""
    vae, text = config.vae, config.text
    sides = (request.height // vae.factor, request.width // vae.factor)
    kind, more = kind_of(config), config.unet.in_channels - vae.latent_channels
    if kind == GIVEN and request.concat is None:
        raise ValueError(
            f"this model ({config.name}) takes {more} channels beside the latent: give them by concat, "
            f"{[*sides, more]} for each picture"
        )
    if kind != GIVEN and request.concat is not None:
        why = "takes no channels beside the latent" if kind == "text" else f"is one for {KINDS[kind]}"
        raise ValueError(f"concat has no effect, because this model ({config.name}) {why}: leave it out")
    wanted = {
        "latents": (*sides, vae.latent_channels),
        "concat": (*sides, more),
        **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), (text.max_length, text.width)),
    }
    layers_used(text, request.clip_skip)
    for name, shape in wanted.items():
        value = getattr(request, name)
        if value is None:
            continue
        chunks = max(1, len(value) // shape[0]) if name.endswith("_embeds") else 1
        if value.shape != (shape[0] * chunks, *shape[1:]):
            raise ValueError(
                f"{name} must have the shape {list(shape)} for this model and size; got {list(value.shape)}"
            )


def find_windows(config: ModelConfig, request: Request) -> Windows | None:
    """Returns the windows of a picture's latent, if it is made in windows.

    Raises ValueError unless their side and overlap are multiples of the latent's factor.
    """
    if request.window is None:
        return None
    factor = max(STEP, config.vae.factor)
    overlap = request.window_overlap
    if overlap is None:
        overlap = request.window // 2 // factor * factor
    for name, side in ("window", request.window), ("window_overlap", overlap):
        if side % factor:
            raise ValueError(f"{name} is a multiple of {factor} pixels; got {side}")
    return Windows(request.window // config.vae.factor, overlap // config.vae.factor, request.window_blend)


def check_size(
    config: ModelConfig, height: int | None, width: int | None, *, windowed: bool = False
) -> tuple[int, int]:
    """Returns height and width. None means the model's own side.

    Raises ValueError, naming the nearest valid sizes, unless both are multiples of 8 from 64 to 2048, or to 8192 for a
    picture that is made in windows (`windowed`).
    """
    sides = []
    step = max(STEP, config.vae.factor)
    for name, side in ("height", height), ("width", width):
        side = config.image_size if side is None else side
        low, high = (SIDES[0], WIDEST) if windowed else SIDES
        side = whole(name, side)
        if not low <= side <= high or side % step:
            below = min(max(side // step * step, low), high)
            above = min(max(placement.padded(side, step), low), high)
            near = f"{below}" if below == above else f"{below} or {above}"
            raise ValueError(f"{name} is a multiple of {step} from {low} to {high}; got {side}, the nearest is {near}")
        sides.append(side)
    return sides[0], sides[1]


def make_sampler(
    sampler: str | samplers.Sampler | HasSteps,
    schedule: NoiseSchedule | None = None,
    tool: str | None = None,
    **fields: Any,
) -> samplers.Sampler:
    """Returns the sampler of that name in any tool, or the given sampler.

    Values of `fields` that are not None replace its fields. A name may say the schedule too: "DPM++ 2M Karras". For a
    sampler given by name, the default spacing is chosen for the `schedule` (`sdjax.samplers.spacing.fitting`).
    A sampler that is given as an object keeps its spacing. `tool` is a `Request.compat`: the sampler of a name is then
    the one that the tool runs.

    Raises ValueError for an unknown name (listing the nearest known ones) or a field that the sampler does not have.
    """
    profile = compat.profile_of(tool)
    if isinstance(sampler, str) and profile.recipes == "diffusers":
        from sdjax.samplers.diffusers.by_name import by_name

        step = {name: value for name, value in fields.items() if value is not None and name != "spacing"}
        return by_name(sampler, schedule or NoiseSchedule(), fields.get("spacing"), step)
    if isinstance(sampler, str) and profile.recipes is not None:
        return tool_sampler(profile, sampler, {name: value for name, value in fields.items() if value is not None})
    if isinstance(sampler, str):
        found = names.find_sampler(sampler, more=samplers.SAMPLERS)
        if found.schedule is not None and fields.get("spacing") is None:
            fields["spacing"] = found.schedule
        sampler = samplers.SAMPLERS[found.sampler]()
        if schedule is not None and isinstance(sampler, samplers.Sampler):
            spacing = sampler.spacing
            if spacing == "even" and profile.spacing is not None:
                sampler = dataclasses.replace(sampler, spacing=profile.spacing)
            elif isinstance(spacing, str):
                sampler = dataclasses.replace(sampler, spacing=fitting(spacing, schedule))
    changed: Any = sampler
    whole_sampler = complete(sampler)
    fields = {name: value for name, value in fields.items() if value is not None}
    own: set[str] = (
        {field.name for field in dataclasses.fields(sampler)} if dataclasses.is_dataclass(sampler) else set()
    )
    unknown = sorted(set(fields) - own)
    if unknown:
        raise ValueError(
            f"the sampler {type(sampler).__name__} has no {' and no '.join(unknown)}{meant(unknown[0], own)}"
        )
    return complete(dataclasses.replace(changed, **fields)) if fields else whole_sampler


def tool_sampler(profile: compat.Profile, name: str, fields: Mapping[str, Any]) -> ToolSampler:
    """Returns the sampler of that name as a tool runs it. `fields` are the sampler's, and its schedule is `spacing`."""
    assert profile.recipes is not None
    settings = {field: value for field, value in fields.items() if field != "spacing"}
    made = tools.recipe(profile.recipes, name, fields.get("spacing"), settings=settings)
    own = {field.name for field in dataclasses.fields(made.sampler)}
    if "brownian" in own and "brownian" not in settings and isinstance(made.sampler, samplers.DPMSolverSDE):
        made = dataclasses.replace(made, sampler=dataclasses.replace(made.sampler, brownian=profile.brownian))
    return ToolSampler(recipe=made)


def begin(request: Resolved, strength: float | None) -> samplers.Start:
    """Returns the start of a picture's run. `strength` None means that there is no latent to start from."""
    sampler, counting, schedule = request.sampler, request.strength_counting, request.noise_schedule
    if isinstance(sampler, ToolSampler) and (
        strength is None or counting.removesuffix("_exact") == sampler.recipe.tool
    ):
        if strength is not None:
            strength = number("strength", strength, 0, 1)
        return sampler.begin(schedule, request.num_steps, strength, exact=counting.endswith("_exact"))
    start = samplers.make_start(sampler, schedule, request.num_steps, strength, counting=counting)
    return start._replace(as_it_is=isinstance(sampler, ToolSampler) and sampler.recipe.as_it_is)


def counted(sampler: samplers.Sampler, num_steps: int) -> int:
    """Returns the number of steps: that of a list of sigmas or timesteps, or `num_steps`."""
    spacing = sampler.spacing
    return spacing.count if isinstance(spacing, SigmaList | TimestepList) else num_steps


def rescaled(schedule: NoiseSchedule, tool: bool | str | None) -> NoiseSchedule:
    """Returns the noise schedule, rescaled to zero terminal SNR with the last alphas_cumprod of a tool if there is one.

    A model that predicts epsilon cannot start from pure noise (`check_begin`).
    """
    if tool is None or tool is False:
        return schedule
    config = schedule.config
    if config.prediction != "epsilon":
        config = dataclasses.replace(config, zero_terminal_snr=True)
    return NoiseSchedule(config, LAST_ALPHAS["diffusers" if tool is True else tool])


def check_begin(schedule: NoiseSchedule, rows: samplers.Rows) -> None:
    """Raises ValueError if the steps of a rescaled schedule start at pure noise and the network predicts epsilon."""
    if schedule.last_alpha is None or schedule.config.prediction != "epsilon":
        return
    if np.max(rows.timestep) > schedule.num_timesteps - 2:
        raise ValueError(
            "with zero_terminal_snr the steps start at pure noise, where a network that predicts epsilon says nothing "
            "about the picture: choose a schedule that starts lower, such as leading, or a model that predicts v"
        )
