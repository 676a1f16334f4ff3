"""The table of preprocessors, which make hints for ControlNets from pictures: names, options, networks that they need.

A hint is a picture too: of edges, tones, depth or poses. Names are those of sd-webui-controlnet if it has the
preprocessor. Nothing here imports numpy, so that the command's help can list them. `sdjax.make_hint` runs them.
"""

import dataclasses
import numbers
from collections.abc import Mapping

from sdjax.spelling import meant

Value = float | int


@dataclasses.dataclass(frozen=True)
class Option:
    """A number that changes a hint: its default, its range, and what it is. A default of int makes it whole."""

    default: Value
    low: float
    high: float
    purpose: str

    @property
    def kind(self) -> str:
        """What its values are, in words."""
        whole = "whole " if isinstance(self.default, int) else ""
        return f"a {whole}number from {self.low:.10g} to {self.high:.10g}"

    def check(self, name: str, value: object) -> Value:
        """Returns the value as the option's type. Raises ValueError, with `name`, unless it is in the range."""
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            number = float(value)
            if self.low <= number <= self.high and (isinstance(self.default, float) or number.is_integer()):
                return type(self.default)(number)
        raise ValueError(f"{name} is {self.kind}; got {value!r}")


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """What a preprocessor draws, its options, and the kinds of annotators (networks) that it needs."""

    purpose: str
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()


ANNOTATORS: Mapping[str, tuple[str, str]] = {  # kinds: what each is, and the files that it is published in
    "hed": ("HED, the network of soft edges", "ControlNetHED.pth"),
    "lineart": ("the network of line drawings", "sk_model.pth, or sk_model2.pth for coarse lines"),
    "depth": ("the depth network DPT-Hybrid", "dpt_hybrid-midas-501f0c75.pt, transformers' folder, or a depth model"),
    "body": ("OpenPose's network of bodies", "body_pose_model.pth"),
    "hand": ("OpenPose's network of hands", "hand_pose_model.pth"),
    "face": ("OpenPose's network of faces", "facenet.pth"),
}


_GRADIENT = {"sigma": Option(1.5, 0.1, 50, "pixels of blur before edges are sought")}
_LEVEL = {"threshold": Option(40.0, 0, 255, "level of the soft edge, blurred by 3 pixels, above which a line is drawn")}
_GAMMA = {"gamma_correction": Option(1.0, 0.1, 10, "power of the grey levels: above 1 darker, below 1 lighter")}

PREPROCESSORS: Mapping[str, Preprocessor] = {
    "canny": Preprocessor("thin lines along sharp edges", {
        "low_threshold": Option(100.0, 0, 2040, "gradient down to which a line is followed"),
        "high_threshold": Option(200.0, 0, 2040, "gradient above which a line begins"),
    }),
    "softedge_gradient": Preprocessor("wide soft edges, without a network", _GRADIENT),
    "scribble_gradient": Preprocessor("thick lines as of a pen, without a network", _GRADIENT | _LEVEL),
    "scribble_xdog": Preprocessor("thick lines by a difference of Gaussians, without a network", {
        "threshold": Option(32.0, 0, 255, "difference above which a line is drawn"),
    }),
    "lineart_standard": Preprocessor("the dark lines of a picture, without a network", {
        "sigma": Option(6.0, 0.1, 50, "pixels of blur of what the picture is compared with"),
        "threshold": Option(8.0, 0, 255, "levels of difference that count as a line"),
    }),
    "invert": Preprocessor("a drawing in dark lines on white as white lines on black"),
    "threshold": Preprocessor("black and white", {
        "threshold": Option(127.0, 0, 255, "level above which all channels have to be for white"),
    }),
    "blur_gaussian": Preprocessor("the picture blurred", {"sigma": Option(9.0, 0.1, 100, "pixels of blur")}),
    "tile_resample": Preprocessor("the picture, or with a rate above 1 without its details", {
        "down_sampling_rate": Option(1.0, 1, 64, "how many times it is shrunk and enlarged again"),
    }),
    "shuffle": Preprocessor("the picture's colours and textures in disorder", {
        "seed": Option(0, 0, 2**32 - 1, "which disorder"),
        "cell": Option(256, 8, 1024, "pixels between two random places"),
    }),
    "recolor_luminance": Preprocessor("lightness alone, in grey", _GAMMA),
    "recolor_intensity": Preprocessor("the largest channel alone, in grey", _GAMMA),
    "t2ia_color_grid": Preprocessor("squares of 64 pixels of one colour each"),
    "softedge_hed": Preprocessor("wide soft edges", needs=("hed",)),
    "softedge_hedsafe": Preprocessor("wide soft edges in three levels", needs=("hed",)),
    "scribble_hed": Preprocessor("thick lines as of a pen", needs=("hed",)),
    "lineart_realistic": Preprocessor("a line drawing (with sk_model2.pth other tools' lineart_coarse)",
                                      needs=("lineart",)),
    "depth_midas": Preprocessor("depth: near things are white", needs=("depth",)),
    "normal_midas": Preprocessor("which way surfaces face", {
        "background": Option(0.1, 0, 1, "share of the largest depth below which nothing is drawn"),
        "strength": Option(6.283185307179586, 0.01, 100, "how flat surfaces look: 2 pi in other tools"),
    }, needs=("depth",)),
    "openpose": Preprocessor("poses of bodies", needs=("body",)),
    "openpose_hand": Preprocessor("poses of bodies and hands", needs=("body", "hand")),
    "openpose_face": Preprocessor("poses of bodies and faces", needs=("body", "face")),
    "openpose_faceonly": Preprocessor("faces alone", needs=("body", "face")),
    "openpose_full": Preprocessor("poses of bodies, hands and faces", needs=("body", "hand", "face")),
}  # fmt: skip


def checked_options(name: str, given: Mapping[str, object]) -> dict[str, Value]:
    """Returns all options of a preprocessor, defaults included.

    Raises ValueError for an unknown preprocessor, unknown options and values out of range.
    """
    if not isinstance(name, str) or name not in PREPROCESSORS:
        raise ValueError(
            f"there is no preprocessor {name!r}{meant(name, PREPROCESSORS)}; "
            f"the known ones are {', '.join(PREPROCESSORS)}"
        )
    options = PREPROCESSORS[name].options
    unknown = sorted(set(given) - set(options))
    if unknown:
        known = f"its options are {', '.join(options)}" if options else "it has no options"
        raise ValueError(f"{name} has no option {unknown[0]!r}: {known}")
    return {key: option.check(f"{key} of {name}", given.get(key, option.default)) for key, option in options.items()}
