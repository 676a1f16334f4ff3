"""What the engine can make. TASKS is the table: a function of a work and its context for each name."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import sdjax
from sdjax._version import __version__
from sdjax.adapters.table import describe, make_settings
from sdjax.checks.arguments import number, shown, whole
from sdjax.config import ModelConfig
from sdjax.pictures import resize
from sdjax.pictures.geometry import METHODS as FILTERS
from sdjax.pictures.image import infotext
from sdjax.pipeline.model import Pipeline
from sdjax.preprocessors import PREPROCESSORS
from sdjax.serve.comfy.task import check_work, run_workflow
from sdjax.serve.engine.context import Context
from sdjax.serve.engine.making import make
from sdjax.serve.engine.options import Options, describe_input, find_annotators, find_file, read
from sdjax.serve.engine.work import Finished, Work
from sdjax.spelling import meant
from sdjax.tasks import inputs, recording
from sdjax.tasks.enlarge import MOST_PIXELS, TILE, read_upscaler
from sdjax.tasks.hints import make_hint
from sdjax.tasks.inpaint import FILLS, METHODS, check_fill, check_method
from sdjax.tasks.session import Session
from sdjax.tasks.two_pass import OWN as HIRES
from sdjax.tasks.two_pass import check_upscale

if TYPE_CHECKING:
    from sdjax.serve.library import Library

Begin = Callable[..., Session]
SIZE = ("height", "width")


class Drawn(NamedTuple):
    """A task of a session: the names of its own arguments, of its inputs, and what begins it.

    `sized`: its height and width are settings. `begin(options, pipe)` returns the beginning, a function of the options
    that all tasks have, and what the pictures record. `check(options)` raises ValueError for what can be known without
    the model.
    """

    begin: Callable[[Options, Pipeline], tuple[Begin, dict[str, Any]]]
    own: tuple[str, ...] = ()
    sized: bool = False
    inputs: tuple[str, ...] = ("image",)
    check: Callable[[Options], object] = lambda options: None


def _text(options: Options, pipe: Pipeline) -> tuple[Begin, dict[str, Any]]:
    prompt, hires = options.given.get("prompt", ""), _hires(options)
    if not hires:
        return functools.partial(sdjax.text_to_image.session, pipe, prompt), {}
    described = {name: value for name, value in hires.items() if name != "upscaler"}
    if "upscaler" in hires:
        path = hires["upscaler"]
        hires = {**hires, "upscaler": read_upscaler(path)}
        described |= {"upscale": hires["upscaler"].name, "upscaler": recording.fingerprint(path)}
    return functools.partial(sdjax.two_pass.session, pipe, prompt, **hires), {"hires": described}


def _hires(options: Options) -> dict[str, Any]:
    """Returns the arguments of the second pass, with its defaults; nothing without one."""
    given = options.own.get("hires")
    if not given:
        return {}
    if not isinstance(given, Mapping) or not given.keys() <= set(HIRES):
        raise ValueError(f"hires is an object with {', '.join(HIRES)}; got {shown(given)}")
    own = {name: value for name, value in given.items() if value is not None}
    if "upscaler" in own:
        own["upscaler"] = find_file(options.library, "upscaler", own["upscaler"])
    else:
        check_upscale(own.get("upscale", "lanczos"))
    own = {"enlarge": 2.0, "upscale": "lanczos", "strength": 0.6, **own}
    own |= {"enlarge": number("enlarge", own["enlarge"], 1), "strength": number("strength", own["strength"], 0, 1)}
    if "hires_scale" in own:
        own["hires_scale"] = number("hires_scale", own["hires_scale"])
    if "hires_patches" in own:
        own["hires_patches"] = [describe(one) for one in make_settings(own["hires_patches"])]
    return own


def _image(options: Options, pipe: Pipeline) -> tuple[Begin, dict[str, Any]]:
    picture, strength = options.picture(), _strength(options, 0.75)
    begin = functools.partial(
        sdjax.image_to_image.session, pipe, picture, options.given.get("prompt", ""), strength=strength
    )
    return begin, {"init_img": _init(options), "strength": strength}


def _strength(options: Options, default: float) -> float:
    return number("strength", options.own.get("strength", default), 0, 1)


def _init(options: Options, name: str = "image") -> dict[str, Any]:
    return {"name": name, **describe_input(options.work.inputs[name])}


def _check_image(options: Options) -> None:
    _strength(options, 0.75)
    windowed = options.given.get("window") is not None
    size = [options.given.get(name) for name in SIZE]
    inputs.working_size(ModelConfig("any"), options.picture().shape[:2], *size, windowed=windowed)


def _inpaint(options: Options, pipe: Pipeline) -> tuple[Begin, dict[str, Any]]:
    own, picture, mask = dict(options.own), options.picture(), options.mask()
    prompt = options.given.get("prompt", "")
    defaults = {
        "strength": 1.0,
        "method": None,
        "only_masked": False,
        "composite": True,
        "feather": 0,
        "fill": FILLS[0],
    }
    how = {**defaults, **{name: own[name] for name in (*defaults, "padding") if name in own}}
    begin: Begin = functools.partial(sdjax.inpaint.session, pipe, picture, mask, prompt, **how)
    if "expand" in own:
        how |= {"expand": inputs.check_expand(own["expand"]), "overlap": own.get("overlap", 0)}
        begin = functools.partial(sdjax.outpaint.session, pipe, picture, prompt, mask=mask, **how)
    described = {"init_img": _init(options), "mask": None if mask is None else _init(options, "mask"), **how}
    return begin, {**described, "method": check_method(pipe.config, how["method"])}


def _check_inpaint(options: Options) -> None:
    own, picture = options.own, options.picture()
    _strength(options, 1.0)
    if own.get("method") not in (None, *METHODS):
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {shown(own['method'])}")
    check_fill(own.get("fill", FILLS[0]))
    if "expand" in own:
        inputs.check_expand(own["expand"])
    elif "mask" not in options.work.inputs:
        raise ValueError("the input mask is missing: white is repainted; or give expand, to continue the picture")
    if "mask" in options.work.inputs:
        inputs.open_masks(options.work.inputs["mask"], [picture.shape[:2]])


def _depth(options: Options, pipe: Pipeline) -> tuple[Begin, dict[str, Any]]:
    strength, depth = _strength(options, 0.9), options.work.inputs.get("depth")
    begin = functools.partial(
        sdjax.depth_to_image.session, pipe, options.picture(), options.given.get("prompt", ""), strength=strength,
        depth_map=None if depth is None else np.asarray(depth).reshape(*depth.shape[:2], -1).mean(-1),
    )  # fmt: skip
    own = {"depth": None if depth is None else _init(options, "depth"), "depth_model": None, "strength": strength}
    return begin, {"init_img": _init(options), **own}


def _edit(options: Options, pipe: Pipeline) -> tuple[Begin, dict[str, Any]]:
    scale = number("image_scale", options.own.get("image_scale", 1.5))
    begin = functools.partial(
        sdjax.edit.session, pipe, options.picture(), options.given.get("prompt", ""), image_scale=scale
    )
    return begin, {"init_img": _init(options), "image_scale": scale}


def _by_diffusion(options: Options, pipe: Pipeline) -> tuple[Begin, dict[str, Any]]:
    level = whole("noise_level", options.own.get("noise_level", 20), 0)
    begin = functools.partial(
        sdjax.upscale.session, pipe, options.picture(), options.given.get("prompt", ""), noise_level=level
    )
    return begin, {"init_img": _init(options), "noise_level": level}


def _detail(options: Options, pipe: Pipeline) -> tuple[Begin, dict[str, Any]]:
    own = dict(options.own)
    defaults = {"strength": 0.4, "method": None, "grow": 4, "padding": 32, "feather": 4, "most": None}
    how = {**defaults, **{name: own[name] for name in (*defaults, "confidence") if name in own}}
    detector = None
    if "detector" in own:
        detector = sdjax.convert.load_detector(find_file(options.library, "detector", own["detector"]))
    boxes = [tuple(box) for box in own["boxes"]] if "boxes" in own else None
    mask = options.mask()
    begin = functools.partial(
        sdjax.detail.session, pipe, options.picture(), options.given.get("prompt", ""), boxes=boxes, masks=mask,
        detector=detector, **how,
    )  # fmt: skip
    found = {
        "boxes": boxes, "mask": None if mask is None else _init(options, "mask"),
        "detector": None if detector is None else detector.name, **how,
    }  # fmt: skip
    chosen = {name: value for name, value in found.items() if value is not None}
    return begin, {"init_img": _init(options), **chosen, "method": check_method(pipe.config, how["method"])}


def _check_detail(options: Options) -> None:
    _strength(options, 0.4)
    if "detector" in options.own:
        find_file(options.library, "detector", options.own["detector"])
    boxes = options.own.get("boxes", [])
    if not isinstance(boxes, list) or not all(isinstance(box, list | tuple) for box in boxes):
        raise ValueError(f"boxes is a list of [left, top, width, height] in pixels; got {shown(boxes)}")


def _variations(options: Options, pipe: Pipeline) -> tuple[Begin, dict[str, Any]]:
    level = whole("noise_level", options.own.get("noise_level", 0), 0, 999)
    begin = functools.partial(
        sdjax.image_variations.session, pipe, options.picture(), options.given.get("prompt", ""), noise_level=level
    )
    return begin, {"init_img": _init(options), "noise_level": level}


DRAWN: dict[str, Drawn] = {
    "txt2img": Drawn(_text, ("hires",), True, (), _hires),
    "img2img": Drawn(_image, ("strength",), True, check=_check_image),
    "inpaint": Drawn(
        _inpaint,
        ("strength", "method", "only_masked", "padding", "composite", "feather", "expand", "overlap", "fill"),
        check=_check_inpaint,
    ),
    "depth2img": Drawn(_depth, ("strength",), check=lambda options: _strength(options, 0.9)),
    "edit": Drawn(_edit, ("image_scale",), True),
    "upscale": Drawn(_by_diffusion, ("noise_level",)),
    "detail": Drawn(
        _detail,
        ("strength", "method", "grow", "padding", "feather", "most", "boxes", "detector", "confidence"),
        check=_check_detail,
    ),
    "variations": Drawn(_variations, ("noise_level",), True),
}


def _draw(work: Work, context: Context) -> list[Finished]:
    """Makes the pictures of a task of DRAWN."""
    drawn, options = DRAWN[work.task], _read(work, context.library)
    vae = work.settings.get("vae")
    pipe = context.pipe(**({} if vae is None else {"vae": find_file(context.library, "vae", vae)}))
    begin, described = drawn.begin(options, pipe)
    return make(context, pipe, options, begin, described)


def _read(work: Work, library: "Library") -> Options:
    """Returns the options of a work of DRAWN, checked as far as that is possible without the model."""
    drawn = DRAWN[work.task]
    if work.settings.get("vae") is not None:
        find_file(library, "vae", work.settings["vae"])
    work_without = {name: value for name, value in work.settings.items() if name != "vae"}
    options = read(_with(work, work_without), library, drawn.own, SIZE if drawn.sized else ())
    for name in drawn.inputs:
        options.picture(name)
    drawn.check(options)
    return options


def _with(work: Work, settings: Mapping[str, Any]) -> Work:
    return Work(work.task, settings, work.inputs, work.model, work.client, work.priority, work.save)


def _upscale(work: Work, context: Context) -> list[Finished]:
    """Enlarges a picture by an upscaler of the library, by a filter, or by a diffusion model if neither is named."""
    if not _is_enlarging(work):
        return _draw(work, context)
    name, times, tile = _read_enlarging(work, context.library)
    picture = _open(work)
    if name in FILTERS:
        height, width = (round(side * (times or 2.0)) for side in picture.shape[:2])
        if height * width > MOST_PIXELS:
            raise ValueError(f"the result has at most {MOST_PIXELS} pixels; got {width} x {height}: enlarge less")
        made = resize(picture, height, width, name)
        described: dict[str, Any] = {"upscaler": {"name": name}}
    else:
        path = find_file(context.library, "upscaler", name)
        upscaler = read_upscaler(path)
        made = sdjax.enlarge(upscaler, picture, times=times, tile=tile, progress=context.progress)[0]
        described = {"upscaler": recording.fingerprint(path), "times": times, "tile": tile, "dtype": "float32"}
        name = upscaler.name
    context.check()
    factor = made.shape[0] / picture.shape[0]
    own = {"task": "upscale", **described, "versions": {"sdjax": __version__}}
    own |= {"init_img": {"name": "image", **describe_input(picture)}, "height": made.shape[0], "width": made.shape[1]}
    fields = {"Postprocess upscale by": f"{factor:g}", "Postprocess upscaler": name}
    texts = {"parameters": infotext("", "", fields), "sdjax": recording.to_json(own)}
    return [context.finish(made, own, texts)]


def _is_enlarging(work: Work) -> bool:
    return work.settings.get("upscaler") is not None


def _read_enlarging(work: Work, library: "Library") -> tuple[str, float | None, int]:
    known = ("upscaler", "times", "tile")
    _only(work, known)
    name, times = str(work.settings["upscaler"]), work.settings.get("times")
    if name not in FILTERS:
        find_file(library, "upscaler", name)
    factor = None if times is None else number("times", times, 1, 16)
    return name, factor, whole("tile", work.settings.get("tile", TILE), 64)


def _only(work: Work, known: tuple[str, ...]) -> None:
    unknown = [name for name in work.settings if name not in known]
    if unknown:
        raise ValueError(
            f"{work.task} has no setting {shown(unknown[0])}{meant(unknown[0], known)}; it has {', '.join(known)}"
        )


def _open(work: Work) -> np.ndarray:
    return Options(work, None, {}, {}, {}, 1).picture()  # type: ignore[arg-type]


def _hint(work: Work, context: Context) -> list[Finished]:
    """Makes the hint of a picture for a ControlNet."""
    name, annotators, resolution, rest = _read_hint(work, context.library)
    made = make_hint(_open(work), name, annotators=annotators, resolution=resolution, **rest)
    own = {"task": "hint", "preprocessor": name, "versions": {"sdjax": __version__}, **rest}
    return [context.finish(made, own, {"sdjax": recording.to_json(own)})]


def _read_hint(work: Work, library: "Library") -> tuple[str, list[str], int | None, dict[str, Any]]:
    _only(work, ("preprocessor", "options", "annotators", "resolution"))
    name = work.settings.get("preprocessor")
    if name not in PREPROCESSORS:
        raise ValueError(
            f"preprocessor is one of {', '.join(PREPROCESSORS)}; got {shown(name)}{meant(name, PREPROCESSORS)}"
        )
    annotators, resolution = find_annotators(library, work.settings.get("annotators")), work.settings.get("resolution")
    options = work.settings.get("options") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"options are names and numbers; got {shown(options)}")
    side = None if resolution is None else whole("resolution", resolution, 64)
    return str(name), list(annotators), side, dict(options)


TASKS: dict[str, Callable[[Work, Context], list[Finished]]] = {
    **dict.fromkeys(DRAWN, _draw),
    "upscale": _upscale,
    "hint": _hint,
    "workflow": run_workflow,
}


def _check_upscale(work: Work, library: "Library") -> None:
    if _is_enlarging(work):
        _open(work)
        _read_enlarging(work, library)
    else:
        _read(work, library)


def _check_hint(work: Work, library: "Library") -> None:
    _open(work)
    _read_hint(work, library)


CHECKS: dict[str, Callable[[Work, "Library"], object]] = {  # what each task refuses before it waits
    **dict.fromkeys(DRAWN, _read),
    "upscale": _check_upscale,
    "hint": _check_hint,
    "workflow": check_work,
}


def check(work: Work, library: "Library") -> None:
    """Raises ValueError for a work that cannot be made, as far as that is known without its model."""
    if work.task not in TASKS:
        raise ValueError(
            f"unknown task {shown(work.task)}{meant(work.task, TASKS)}; the known ones are {', '.join(TASKS)}"
        )
    CHECKS[work.task](work, library)


def paints(work: Work) -> bool:
    """Returns whether a work repaints a part of a picture by a network that is shown the rest."""
    return work.task == "inpaint" and work.settings.get("method") in (None, "concat")
