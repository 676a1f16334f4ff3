"""The ControlNets and T2I-Adapters of pictures: networks and hints, given by file or as objects."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import pictures
from sdjax.adapters.control import MODES
from sdjax.checks.arguments import number, shown
from sdjax.config import ModelConfig
from sdjax.convert.containers.local_models import local_path
from sdjax.convert.errors import CheckpointError
from sdjax.convert.parts.controlnet import LoadedControlNet, find_controlnet, load_controlnet
from sdjax.convert.parts.t2i import LoadedT2I, load_t2i
from sdjax.nn.controlnet import of_unet
from sdjax.nn.t2i import FACTOR
from sdjax.pictures.opening import PictureSource
from sdjax.pipeline.model import Pipeline
from sdjax.preprocessors import PREPROCESSORS, checked_options
from sdjax.prompts.tag_spans import Span, check_span
from sdjax.tasks.adapters import split_weights
from sdjax.tasks.extra_files import read_once
from sdjax.tasks.flag_texts import split_at, split_options, unquoted
from sdjax.typing import Params

if TYPE_CHECKING:
    from sdjax.convert.parts.annotators import LoadedAnnotator

Network: TypeAlias = LoadedControlNet | LoadedT2I
RESIZES = ("crop", "pad", "stretch")
INPAINT = "inpaint"  # the preprocessor of inpainting nets, which needs a mask
NUMBERS = ("weight", "start", "end")
WORDS = ("mode", "resize", "mask", "hidden", "annotator")
OTHER_HINTS = ("MLSD", "segmentation")  # their hints are made by other tools


@dataclasses.dataclass(frozen=True, eq=False)
class ControlUse:
    """A ControlNet or T2I-Adapter that steers a picture, and its hint.

    `network`: a file, a folder, a repository of the hub, "builtin-edges" (for the built-in model), or what
    `sdjax.convert.load_controlnet` or `load_t2i` returns. `hint`: a picture (a path, a file's bytes, a Pillow image,
    uint8 [h, w, 3]), float32 [height, width, c] in the size of the picture that is made; None: the task's own input
    picture. `preprocess`: a name of `sdjax.preprocessors.PREPROCESSORS` by which the hint is made of that picture, with
    `options`; or "inpaint", which hides the part where `hidden` is white, or the task's mask if it is None.
    `annotators`: the networks that the preprocessor needs, files or what `sdjax.convert.load_annotator` returns.

    `weight`: how much it counts; 0 switches it off. It works from the share `start` of the steps to the share `end`: in
    step i of n if i / n >= start and (i + 1) / n <= end. `mode`: a name of `sdjax.adapters.control.MODES`. `mask`: it
    counts where this is white; None: everywhere. `resize`: how hint and masks are brought to the picture's size: "crop"
    (cut to its shape), "pad" (the whole hint, with a border of its own colour) or "stretch".

    Raises ValueError for values out of range and unknown names.
    """

    network: Network | str | os.PathLike[str]
    hint: PictureSource | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    mask: PictureSource | None = None
    resize: str = "crop"
    preprocess: str | None = None
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    annotators: "Sequence[str | os.PathLike[str] | LoadedAnnotator]" = ()
    hidden: PictureSource | None = None

    def __post_init__(self) -> None:
        number("a control's weight", self.weight)
        check_span("a control", self.start, self.end)
        for name, value, known in ("mode", self.mode, tuple(MODES)), ("resize", self.resize, RESIZES):
            if value not in known:
                raise ValueError(f"a control's {name} is one of {', '.join(known)}; got {shown(value)}")
        if self.preprocess == INPAINT and self.options:
            raise ValueError(f"{INPAINT} has no option {next(iter(self.options))!r}: it has no options")
        if self.preprocess not in (None, INPAINT):
            checked_options(str(self.preprocess), self.options)
        elif self.annotators:
            raise ValueError("annotators have no effect without a preprocessor that needs them: leave them out")
        if self.hidden is not None and self.preprocess != INPAINT:
            raise ValueError(f"a control's hidden part has no effect without the preprocessor {INPAINT}")
        if self.options and self.preprocess is None:
            raise ValueError(f"the option {next(iter(self.options))!r} has no effect without a preprocessor")

    @property
    def name(self) -> str:
        """The network's name, for messages."""
        return self.network.name if isinstance(self.network, LoadedControlNet | LoadedT2I) else str(self.network)

    @property
    def loaded(self) -> Network:
        """The network, which has been read."""
        assert isinstance(self.network, LoadedControlNet | LoadedT2I)
        return self.network

    @property
    def span(self) -> Span:
        """The share of the steps from and to which it works."""
        return self.start, self.end


ControlLike: TypeAlias = ControlUse | str


def read_text(text: str) -> ControlUse:
    """Returns the control that a text names: FILE[:WEIGHT][=[PREPROCESSOR:]HINT][,NAME=VALUE...].

    Names are weight, start, end, mode, resize, mask, hidden, annotator (may be repeated) and the options of the
    preprocessor. Nothing is read yet. Raises ValueError for anything else.
    """
    given: dict[str, str] = {}
    annotators: list[str] = []
    head, given_options = split_options("a control", text)
    for key, value in given_options:
        if key == "annotator":
            annotators.append(value)
        elif key in given:
            raise ValueError(f"--control {shown(text)} gives {key} twice: give it once")
        else:
            given[key] = value
    file, equals, hint = map(unquoted, split_at(head, "="))
    file, weights = split_weights(file)
    if weights.text is not None or not file:
        raise ValueError(f"a control is FILE[:WEIGHT]=HINT, such as canny.safetensors:0.8=edges.png; got {shown(text)}")
    name, colon, picture = hint.partition(":")
    preprocess = name if colon and name in (*PREPROCESSORS, INPAINT) and not os.path.exists(hint) else None
    if preprocess is not None:
        hint = picture
    if equals and not hint and preprocess is None:
        raise ValueError(f"a control's hint is missing after = in {shown(text)}")
    fields: dict[str, Any] = {"weight": weights.unet}
    if "weight" in given and unquoted(split_at(head, "=")[0]) != file:
        raise ValueError(f"a control's weight is given twice in {shown(text)}: give it once")
    own = {} if preprocess in (None, INPAINT) else PREPROCESSORS[preprocess].options
    options: dict[str, float] = {}
    for key, value in given.items():
        if key in WORDS:
            fields[key] = value
        elif key in NUMBERS or key in own:
            (fields if key in NUMBERS else options)[key] = _number(key, value)
        else:
            known = ", ".join((*NUMBERS, *WORDS, *own))
            raise ValueError(f"a control has no {key!r}; it has {known}")
    return ControlUse(file, hint or None, preprocess=preprocess, options=options, annotators=annotators, **fields)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"a control's {name} is a number; got {shown(text)}") from None
    if not np.isfinite(value):
        raise ValueError(f"a control's {name} is a finite number; got {shown(text)}")
    return int(value) if value == int(value) and "." not in text else value


def read_control(given: ControlLike, pipe: Pipeline) -> ControlUse:
    """Returns the control with its network, hint and masks read.

    Raises ValueError for anything else than a ControlUse or a text (`read_text`), and for pictures that cannot be read;
    `sdjax.convert.CheckpointError` for a network that cannot be used with this model.
    """
    use = read_text(given) if isinstance(given, str) else given
    if not isinstance(use, ControlUse):
        raise ValueError(
            f"a control is a ControlUse, or a text such as 'canny.safetensors=edges.png'; got {shown(use)}"
        )
    network = use.network
    if isinstance(network, str | os.PathLike):
        network = read_network(os.fspath(network), pipe)
    check_fits(network, pipe.config)
    return read_pictures(dataclasses.replace(use, network=network))


def read_pictures(use: ControlUse) -> ControlUse:
    """Returns the control with its hint, masks and annotators read.

    Raises ValueError for pictures that cannot be read, and as `sdjax.make_hint` for annotators.
    """
    mask, hidden = _mask("mask", use.mask), _mask("hidden", use.hidden)
    if use.preprocess not in (None, INPAINT):
        from sdjax.tasks.hints import load_annotators

        loaded = [_annotator(os.fspath(one)) if isinstance(one, str | os.PathLike) else one for one in use.annotators]
        use = dataclasses.replace(use, annotators=tuple(load_annotators(str(use.preprocess), loaded).values()))
    channels = use.network.config.hint_channels if isinstance(use.network, LoadedControlNet | LoadedT2I) else 3
    return dataclasses.replace(use, hint=_hint(use.hint, use.name, channels), mask=mask, hidden=hidden)


@read_once(8)
def _annotator(path: str) -> "LoadedAnnotator":
    from sdjax.convert.parts.annotators import load_annotator

    return load_annotator(path)


class _Same:
    """Parameters as a key: equal to themselves alone, and kept as long as the key is."""

    def __init__(self, params: Params) -> None:
        self.params = params

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.params is other.params

    def __hash__(self) -> int:
        return id(self.params)


def read_network(path: str, pipe: Pipeline) -> Network:
    """Returns the ControlNet or T2I-Adapter in a file, a folder or a hub repository, for a model.

    It is read once while it does not change. Raises CheckpointError.
    """
    path = resolved(path)
    found = _read_whole(path, pipe.config)
    return _read_for(path, pipe.config, _Same(pipe.params["unet"])) if found is None else found


def resolved(path: str | os.PathLike[str]) -> str:
    """Returns the path of a network on this computer: of a built-in one, or fetched from the hub if it is there.

    Raises CheckpointError.
    """
    from sdjax.loading import builtin, hub

    if path == builtin.EDGES and not os.path.exists(path):
        return str(builtin.control(path))
    return os.fspath(hub.resolve(path) if hub.is_hub_name(path) else local_path(path))


@read_once(4)
def _read_whole(path: str, config: ModelConfig) -> Network | None:
    """Returns the network of a file; None for one that needs the weights of a UNet."""
    try:
        found = find_controlnet(path, config)
    except CheckpointError as error:
        try:
            adapter = load_t2i(path, config)
        except CheckpointError as other:
            raise (error if "T2I-Adapter" in str(error) or "no T2I-Adapter" in str(other) else other) from None
        return dataclasses.replace(adapter, params=_on_device(adapter.params))
    if found.source != "whole":
        return None
    net = load_controlnet(path, config)
    return dataclasses.replace(net, params=_on_device(net.params))


@read_once(2)
def _read_for(path: str, config: ModelConfig, unet: _Same) -> LoadedControlNet:
    net = load_controlnet(path, config, unet.params)
    return dataclasses.replace(net, params=_on_device(net.params))


def _on_device(params: Params) -> Params:
    return jax.tree.map(jnp.asarray, params)


def check_fits(network: object, config: ModelConfig) -> None:
    """Raises ValueError unless a network fits a model of this description."""
    if isinstance(network, LoadedControlNet):
        own, wanted = network.config, of_unet(config.unet, factor=config.vae.factor)
        if own.factor != config.vae.factor or dataclasses.replace(
            own.unet, in_channels=1, linear_projection=False
        ) != dataclasses.replace(wanted.unet, in_channels=1, linear_projection=False):
            raise ValueError(f"the ControlNet {network.name} is for another model than {config.name}")
        if own.unet.in_channels > config.unet.in_channels:
            raise ValueError(
                f"the ControlNet {network.name} takes {own.unet.in_channels} channels, and the model "
                f"{config.unet.in_channels}"
            )
    elif isinstance(network, LoadedT2I):
        if network.config.channels != config.unet.channels or config.vae.factor != FACTOR:
            raise ValueError(f"the T2I-Adapter {network.name} is for another model than {config.name}")
    else:
        raise ValueError(
            f"a control's network is a file, or what load_controlnet or load_t2i returns; got {shown(network)}"
        )


def _hint(given: PictureSource | None, name: str, channels: int) -> np.ndarray | None:
    """Returns the hint as uint8 or float32 [h, w, c]."""
    if given is None:
        return None
    if isinstance(given, np.ndarray | jax.Array) and given.ndim == 3:
        array = np.asarray(given)
        if array.dtype.kind == "f":
            inside = np.isfinite(array).all() and abs(array).max(initial=0) <= 1
            if array.shape[-1] != channels or not inside:
                got = f"the shape {list(array.shape)}" if inside else "other numbers"
                raise ValueError(
                    f"a hint of floats is [height, width, {channels}] in [0, 1] for {name}, with -1 where it must not "
                    f"look; got {got}"
                )
            return array.astype(np.float32)
        if array.dtype == np.uint8 and array.shape[-1] == channels and channels > 3:
            return array
    return _open("hint", pictures.open_picture, given)


def _mask(name: str, given: PictureSource | None) -> np.ndarray | None:
    return None if given is None else _open(name, pictures.open_mask, given)


def _open(name: str, opened: Any, given: PictureSource) -> np.ndarray:
    try:
        return opened(given).pixels
    except FileNotFoundError:
        raise ValueError(f"there is no {name} file {str(given)!r} of a control") from None
    except OSError as error:
        raise ValueError(f"a control's {name} {str(given)!r} cannot be read: {error.strerror or error}") from None
