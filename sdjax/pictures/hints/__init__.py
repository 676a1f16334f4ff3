"""Hints without weights: pictures of lines or tones that ControlNets and T2I-Adapters are steered by.

`PLAIN` maps the names of `sdjax.preprocessors` to functions: uint8 [h, w, 3] and all options by keyword to uint8
[h, w, 3] of the same size. `sdjax.make_hint` checks options, and also runs the preprocessors that need networks.
"""

from collections.abc import Callable, Mapping

import numpy as np

from sdjax.pictures.hints import edges, tones
from sdjax.pictures.hints.tones import inpaint_hint

__all__ = ["PLAIN", "inpaint_hint"]

PLAIN: Mapping[str, Callable[..., np.ndarray]] = {
    "canny": edges.canny,
    "softedge_gradient": edges.softedge_gradient,
    "scribble_gradient": edges.scribble_gradient,
    "scribble_xdog": edges.scribble_xdog,
    "lineart_standard": edges.lineart_standard,
    "invert": tones.invert,
    "threshold": tones.threshold,
    "blur_gaussian": tones.blur_gaussian,
    "tile_resample": tones.tile_resample,
    "shuffle": tones.shuffle,
    "recolor_luminance": tones.recolor_luminance,
    "recolor_intensity": tones.recolor_intensity,
    "t2ia_color_grid": tones.color_grid,
}
