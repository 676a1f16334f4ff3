"""The shared part of all commands that make pictures, from their flags to the files."""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdjax import errors, names
from sdjax.scripts.shared import (
    control_flags,
    device_flags,
    distilled_models,
    large_flags,
    mixture_flags,
    noise_flags,
    options,
    previews,
    prompt_files,
    prompt_flags,
    runtime,
    sampler_flags,
    saving,
    sweeps,
)
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.picture_options import PictureOptions
from sdjax.scripts.shared.prompts import PromptBatch, check_prompts, make_batches, pictures_at_a_time
from sdjax.scripts.shared.wording import in_flags
from sdjax.tasks import describing, recording
from sdjax.tasks.recording import texts

MAX_GRID = 40_000_000  # most pixels in a grid; an input picture may have as many

WITHOUT_WEAK = "--guidance autoguidance needs a second, weaker model: name it with --weak-ckpt"


class Job:
    """One run of a command. Its constructor checks the shared flags, before JAX is set up."""

    def __init__(self, args: argparse.Namespace, task: str) -> None:
        self.args, self.task = args, task
        self.name = choose_sampler(args)
        self.dtype, self.checkpoint = runtime.compute_dtype(args), find_checkpoint(args.ckpt)
        if args.n_rows < 0:
            raise ValueError(f"--n_rows must be at least 1, or 0 for --n_samples; got {args.n_rows}")
        saving.check_watermark(args.watermark)
        self.previews = previews.Previews(args)
        prompt_flags.check_prompting(args)
        if args.dpm and args.plms:
            note("--plms is not used: --dpm overrides it, as in the references")
        if args.skip_save and args.skip_grid and task != "animate":
            note("with --skip_save and --skip_grid, pictures are made but not written")
        self.devices = runtime.set_up_jax(args.device)
        device_flags.check_split(args, self.devices)
        if args.low_memory:
            self.devices = runtime.first_device(self.devices)
        large_flags.check_large(args)
        self.guidance = runtime.read_guidance(args.guidance, args.guidance_option)
        if "autoguidance" in self.guidance.get("guidance", "") and args.weak_ckpt is None:
            raise ValueError(WITHOUT_WEAK)
        self.options = PictureOptions(args, self.name, make_spacing(args), self.guidance)
        self.options.sampler({})
        self.batches: list[PromptBatch] = []
        self.axes: list[Any] = []
        self.own = own_model(self.checkpoint, task, getattr(args, "method", None))
        self.folder = Path(args.outdir)
        self.checker: Any = None

    @property
    def default_prompt(self) -> str:
        """The prompt that is used if none is given."""
        return options.PROMPT if self.own is None else options.BUILTIN_PROMPT

    def make_batches(self, default: str, num_inputs: int = 1) -> list[PromptBatch]:
        """Returns the batches of the command's prompts (`prompts.make_batches`), whose own settings are checked."""
        self.axes = [] if self.args.sweep is None else sweeps.read_axes(self.args)
        batches = make_batches(self.args, default, num_inputs, self.axes, check=self.options.check)
        self.batches = control_flags.with_hints(self.args, batches, bool(self.axes))
        mixture_flags.check_ratios(self.args, (own for batch in self.batches for own in batch.settings))
        own = (one.get("guidance") for batch in self.batches for one in batch.settings)
        asked = any("autoguidance" in str(guidance) for guidance in (self.guidance.get("guidance"), *own))
        if asked and self.args.weak_ckpt is None:
            raise ValueError(WITHOUT_WEAK)
        if self.args.weak_ckpt is not None and not asked:
            raise ValueError("--weak-ckpt has no effect without autoguidance, which no picture asks for: leave it out")
        return self.batches

    def load(self, check: Callable[[Any], None], **more: Any) -> Any:
        """Returns the model. `check` gets its configuration and may refuse it before the weights are read.

        `more` are further arguments of `sdjax.load`.
        """
        import sdjax
        from sdjax.diffusion.guidance import SCALE_AS_INPUT
        from sdjax.loading import builtin, hub
        from sdjax.schedule import NoiseSchedule
        from sdjax.tasks.distilled import outer_scale

        args = self.args
        own = None if self.own is None else builtin.place(self.own)
        if self.checkpoint is None and self.own is not None:
            note(builtin.NOTICES[self.own])
        named = None if args.safety_checker in (saving.AUTO, saving.OFF) else args.safety_checker
        place = own or self.checkpoint
        assert place is not None  # without --ckpt it is one of the built-in models
        resolve_local(place, revision=args.revision)
        resolve_local(args.vae, args.weak_ckpt, named, *(args.merge_with or ()))
        saving.check_outdir(self.folder if args.skip_save else self.folder / "samples")
        said: list[str] = []

        def say(text: str) -> None:
            if text not in said:
                said.append(text)
                note(text)

        with hub.listening(say):
            local = own or hub.resolve(place, args.revision, args.variant)
            vae = None if args.vae is None else hub.resolve(args.vae)
            weak = None if args.weak_ckpt is None else hub.resolve(args.weak_ckpt)
            others = [hub.resolve(path) for path in args.merge_with or ()]

        checked_by = saving.find_checker(args.safety_checker, local, on_hub=not hub.is_local(place))

        def check_all(config: Any) -> None:
            for text in distilled_models.choose_defaults(args, self.options, config):
                say(text)
            for text in distilled_models.choose_for_tags(args, self.batches, config):
                say(text)
            self.options.schedule = NoiseSchedule(config.schedule)
            self.sampler = self.options.sampler({})[1]
            check_latent(args, config)
            device_flags.check_height(args, self.devices, config)
            scale = outer_scale(config, config.guidance_scale if args.scale is None else args.scale)
            without = options.WITHOUT_GUIDANCE if config.unet.guidance_dim is None else SCALE_AS_INPUT
            branches = self.guidance or self.sampler.uses_unconditional
            if scale == 1 and "negative_prompt" in args.given and not branches:
                raise ValueError(f"--negative-prompt has no effect {without}")
            if scale == 1 and "guidance_rescale" in args.given and not self.guidance:
                raise ValueError(f"--guidance-rescale has no effect {without}")
            saving.check_outdir(self.folder, config.image_size)
            self.previews.load(config)
            check(config)
            self.options.check({}, config)
            for own in (one for batch in self.batches for one in batch.settings if one):
                try:
                    self.options.check(own, config)
                except ValueError as error:
                    raise ValueError(f"the picture with {recording.to_json(own)}: {error}") from None
            if checked_by is not None:
                with hub.listening(say):
                    self.checker = saving.load_checker(hub.resolve(checked_by), found=named is None)

        self.pipe = sdjax.load(
            self.own or local,
            config=args.config,
            prediction=args.prediction,
            ema=args.ema,
            vae=vae,
            dtype=self.dtype,
            variant=args.variant,
            vocab=args.vocab,
            quantise=args.quantise,
            low_memory=args.low_memory,
            check=check_all,
            **more,
        )
        for notice in self.pipe.notices:
            say(notice)
        if weak is not None:
            self.pipe = self.pipe.guided_by(sdjax.load(weak, ema=args.ema, dtype=self.dtype, quantise=args.quantise))
        self.pipe, self.merged = prompt_files.with_adapters(self.pipe, args)
        if others:
            self.options.flags["merge_with"] = mixture_flags.direction(args, self.pipe, others)
        self.common = self._describe() | {
            "model": recording.describe_model(place, local),
            "vae": None if vae is None else recording.describe_model(args.vae, vae),
            **({"lora": [Path(text).name for text in args.lora]} if args.lora else {}),  # with the weights
        }
        if weak is not None:
            self.common["weak"] = recording.describe_model(args.weak_ckpt, weak)
        method = args.merge_method or mixture_flags.METHOD
        if others:
            named_others = zip(args.merge_with, others, strict=True)
            self.common["merge_with"] = [recording.describe_model(*one) for one in named_others]
            self.common["merge_method"] = method
        if self.checker is not None and checked_by is not None:
            self.common["safety_checker"] = recording.describe_model(checked_by, Path(self.checker.source))
        return self.pipe

    def make(
        self,
        batches: Sequence[PromptBatch],
        function: Callable[..., Sequence[Any]],
        describe: Callable[[int], dict[str, Any]] = lambda number: {},
    ) -> Made:
        """Makes and writes the pictures, and returns the last one.

        `function(batch, **options)` returns a batch's pictures, uint8 [h, w, 3]. `options` are the options that all of
        the library's tasks have. `describe(k)` returns the settings of a picture made from the k-th input picture. On
        Ctrl-C the finished pictures are written and KeyboardInterrupt is raised.
        """
        from sdjax.pictures import image
        from sdjax.pipeline import placement

        args = self.args
        negative = [own["negative_prompt"] for batch in batches for own in batch.settings if "negative_prompt" in own]
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        texts_of_all = [*prompts, args.negative_prompt, *(text or "" for text in negative)]
        check_prompts(self.pipe, texts_of_all, args)
        kept: list[Made] = []  # for the grid
        previewed = self.previews.options()
        count = 0
        many = max(number for batch in batches for number in batch.inputs) > 0
        most = max([args.batch_of, *(len(batch.seeds) for batch in batches)])
        with runtime.Progress(len(batches)) as progress, runtime.Interrupts() as interrupts:

            def write(batch: PromptBatch, sizes: Sequence[int], pixels: Sequence[Any]) -> list[Made]:
                pixels, safety = self.censor(pixels, [f"the picture of seed {seed}" for seed in batch.seeds])
                written = []
                final = self.options.final_texts(batch)
                for index, (picture, prompt, seed, number, own) in enumerate(zip(pixels, *batch, strict=True)):
                    own = self.options.describe(own, self.pipe.config)
                    own |= {"height": picture.shape[0], "width": picture.shape[1], "batch": sizes[index]}
                    description = {"prompt": prompt, "seed": seed, **self.common, **describe(number), **own}
                    description |= noise_flags.seeds_of(args, seed) | final[index]
                    description |= self.options.style_of(batch, index, description)
                    description |= self.options.hashes(self.pipe, self.merged, batch.settings[index], description)
                    if safety:
                        description["safety"] = safety[index]
                    path = None
                    if not args.skip_save:
                        marked = saving.mark(picture, args.watermark)
                        own = description | ({} if marked is picture else {"watermark": args.watermark})
                        path = image.save_numbered(self.folder / "samples", marked, texts(own))
                        progress.print(path)
                    written.append(Made(picture, description, path))
                return written

            def show(done: int, total: int) -> None:
                progress.show(done, total)
                interrupts.check()

            for batch in batches:
                # Pad a folder's last batch, so that it compiles no further program
                padded = many or args.batch_of > 1
                whole = PromptBatch(*(placement.fill(items, most) for items in batch)) if padded else batch
                sizes = [len(whole.seeds)] * len(whole.seeds)
                options = {
                    **self.options.for_task(whole.settings), "seed": whole.seeds, "parallel": args.parallel,
                    "split_picture": args.split_picture, "devices": self.devices, "exact": args.exact, "progress": show,
                    **previewed, "on_step": functools.partial(self._after_step, sizes),
                    "at_once": pictures_at_a_time(args) if self.axes else None, **noise_flags.varied(args, whole.seeds),
                }  # fmt: skip
                try:
                    pixels = function(whole, **options)
                except KeyboardInterrupt as error:
                    finished = getattr(error, "pictures", [])[: len(batch.seeds)]
                    which = [k for k, picture in enumerate(finished) if picture is not None]
                    write(batch.part(which), [sizes[k] for k in which], [finished[k] for k in which])
                    raise
                written = write(batch, sizes, pixels[: len(batch.seeds)])
                if self.axes and not args.skip_grid:
                    for path in sweeps.save(self.folder, self.axes, written, args.watermark):
                        progress.print(path)
                elif not args.skip_grid:
                    count += len(written)
                    fits = written[0].picture.size // 3 * count <= MAX_GRID
                    kept += written if fits else []
                interrupts.check()
        with errors.doing("making the folder", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)  # even if nothing is written into it
        if len({one.picture.shape for one in kept}) > 1:
            note("no grid was made, because the pictures have several sizes")
        elif len(kept) < count:
            note(f"no grid was made, because it would have more than {MAX_GRID // 10**6} million pixels")
        elif kept:
            columns = math.isqrt(len(kept) - 1) + 1 if many and args.n_samples is None else pictures_at_a_time(args)
            print(saving.save_grid(self.folder, kept, args.n_rows or columns, args.watermark))
        return written[-1]

    def censor(self, pixels: Sequence[Any], names: Sequence[str]) -> tuple[Sequence[Any], list[dict[str, Any]]]:
        """Returns the pictures, with a notice in place of each flagged one, and the checker's verdicts.

        Without a checker there are no verdicts. Prints on standard error which of the `names` were flagged.
        """
        if self.checker is None:
            return pixels, []
        import jax

        with jax.default_device(None if self.devices is None else self.devices[0]):
            return saving.censor(self.checker, pixels, names)

    def _after_step(self, sizes: list[int], step: Any) -> None:
        """Notes with how many others each picture of a step (a `sdjax.Step`) is computed, and writes the preview."""
        if self.task != "detail":  # whose steps number the parts of pictures
            for number in step.which:
                sizes[number] = len(step.which)
        self.previews.show(step)

    def _describe(self) -> dict[str, Any]:
        """Returns the settings that all pictures of a run share."""
        args = self.args
        background = tuple(getattr(args, "background", options.WHITE))
        computing = describing.describe_computing(
            self.task, self.pipe, self.devices, exact=args.exact, parallel=args.parallel,
            split_picture=args.split_picture, variant=args.variant, ema=args.ema, quantise=args.quantise,
        )  # fmt: skip
        return computing | ({} if background == options.WHITE else {"background": list(background)})


def find_checkpoint(path: str | None) -> str | None:
    """Returns the checkpoint to load: `path`, else CompVis's default if it exists, else None for the built-in model."""
    if path is None and Path(options.CHECKPOINT).is_file():
        return options.CHECKPOINT
    return path


def resolve_local(*paths: Any, revision: str | None = None) -> None:
    """Raises if a path that must be on this computer is missing, before the hub is asked for others."""
    from sdjax.loading import hub

    for path in paths:
        if path is not None and hub.is_local(path):
            hub.resolve(path, revision)


def own_model(checkpoint: str | None, task: str, method: str | None) -> str | None:
    """Returns the name of the requested model inside the package; None if another model is requested."""
    base, inpainting = options.BUILTIN
    if checkpoint is None:
        return inpainting if task == "inpaint" and method != "blend" else base
    return checkpoint if checkpoint in options.BUILTIN else None


def choose_sampler(args: argparse.Namespace) -> str:
    """Returns the sampler's name by the references' precedence, dpm before plms before ddim.

    A name of another tool may say the schedule too; that becomes --schedule, unless given.

    Raises ValueError for an unknown name, or if --sampler names another one than --plms or --dpm.
    """
    by_flag = options.DPM if args.dpm else "plms" if args.plms else None
    if args.sampler is None:
        return by_flag or "ddim"
    found = names.find_sampler(args.sampler, more=sampler_flags.sampler_names())
    if by_flag not in (None, found.sampler):
        raise ValueError(f"--sampler {args.sampler} contradicts --{'dpm' if args.dpm else 'plms'}; give one of them")
    if args.schedule is None and not any(option.startswith("spacing=") for option in args.sampler_option):
        args.schedule = found.schedule
    elif found.schedule is not None and not same_schedule(args.schedule, found.schedule):
        chosen = args.schedule or "that of --sampler-option"
        note(f"--sampler {args.sampler} says the schedule {found.schedule}, but {chosen} is used, as it is given too")
    return found.sampler


def same_schedule(given: str | None, ours: str) -> bool:
    """Returns whether --schedule is a name of this schedule in any tool."""
    return given is not None and given.partition("=")[0] not in names.LISTS and names.find_schedule(given) == ours


def make_spacing(args: argparse.Namespace) -> Any:
    """Returns the schedule of --schedule; None if the sampler's own is used. A list decides the number of steps."""
    from sdjax.samplers.schedules import SigmaList, TimestepList

    spacing = runtime.make_schedule(args.schedule, args.schedule_option)
    if isinstance(spacing, SigmaList | TimestepList):
        if "steps" in args.given:
            raise ValueError(
                f"--steps has no effect with --schedule {spacing.name}=...: the list decides; leave it out"
            )
        args.steps = spacing.count
    return spacing


def check_latent(args: argparse.Namespace, config: Any) -> None:
    """Raises ValueError if --C or --f contradict the model."""
    vae = config.vae
    for flag, given, own in ("--C", args.C, vae.latent_channels), ("--f", args.f, vae.factor):
        if given not in (None, own):
            raise ValueError(f"{flag} {given} contradicts the model, which has {own}; leave the flag out")


def note(text: str) -> None:
    """Prints a note on standard error."""
    print(f"note: {in_flags(text)}", file=sys.stderr)
