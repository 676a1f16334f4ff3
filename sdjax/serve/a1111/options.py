"""The options of the interface: those that change pictures, by A1111's names, in memory."""

import threading
from collections.abc import Mapping
from typing import Any

from sdjax.adapters.hypertile import LARGEST, MOST_SWAPS, SMALLEST
from sdjax.checks.arguments import flag, number, shown, whole
from sdjax.serve.bodies import Refused
from sdjax.serve.server import Server
from sdjax.spelling import meant

SOURCES = {"GPU": "torch_cuda", "CPU": "torch_cpu", "NV": "torch_cuda"}  # whose random numbers a seed gives
AUTOMATIC = ("Automatic", "None", "none", "", None)
DEFAULTS: Mapping[str, Any] = {
    "sd_model_checkpoint": None, "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "eta_noise_seed_delta": 0,
    "randn_source": "GPU", "emphasis": "Original", "comma_padding_backtrack": 20, "token_merging_ratio": 0.0,
    "token_merging_ratio_img2img": 0.0, "token_merging_ratio_hr": 0.0, "s_min_uncond": 0.0, "s_min_uncond_all": False,
    "skip_early_cond": 0.0, "hypertile_enable_unet": False, "hypertile_max_depth_unet": 3,
    "hypertile_max_tile_unet": 256, "hypertile_swap_size_unet": 3,
}  # fmt: skip
FIXED: Mapping[str, Any] = {"samples_format": "png", "samples_save": True, "live_previews_enable": True}
EMPHASIS = {"Original": "original", "No norm": "no_norm", "Ignore": "ignore", "None": "none"}


class Options:
    """The options that are set, one set for all clients, as in A1111."""

    def __init__(self, server: Server) -> None:
        self._server, self._set = server, dict(DEFAULTS)
        self._lock = threading.Lock()

    def all(self) -> dict[str, Any]:
        """Returns all options."""
        with self._lock:
            own = dict(self._set)
        library, models = self._server.library, self._server.engine.models
        entry = library.find("checkpoint", models.current)
        named = {"sd_model_checkpoint": library.title(entry), "sd_checkpoint_hash": library.short_hash(entry)}
        return {**FIXED, **own, **named}

    def set(self, given: Mapping[str, Any]) -> None:
        """Sets options. Raises Refused for unknown ones and wrong values; then none is set."""
        present = self.all()
        unknown = [name for name in given if name not in present]
        if unknown:
            raise Refused(
                f"there is no option {shown(unknown[0])} here{meant(unknown[0], DEFAULTS)}; "
                f"there are {', '.join(DEFAULTS)}",
                422,
            )
        fixed = [name for name in given if name not in DEFAULTS and given[name] != present[name]]
        if fixed:
            raise Refused(f"the option {fixed[0]} is {shown(present[fixed[0]])} here and cannot be set", 422)
        own = {name: value for name, value in given.items() if name in DEFAULTS}
        settings_of(self._server, {**present, **own})
        if own.get("sd_model_checkpoint") is not None:
            chosen = self._server.library.find("checkpoint", own.pop("sd_model_checkpoint"))
            self._server.engine.models.use(chosen.name)
        with self._lock:
            self._set.update(own)


def settings_of(server: Server, options: Mapping[str, Any], task: str = "txt2img") -> dict[str, Any]:
    """Returns our settings for options that are set, for a task. Raises ValueError for wrong values."""
    out: dict[str, Any] = {}
    source, emphasis = options["randn_source"], options["emphasis"]
    if not isinstance(source, str) or source not in SOURCES:
        raise Refused(f"randn_source is one of {', '.join(SOURCES)}; got {shown(source)}", 422)
    if not isinstance(emphasis, str) or emphasis not in EMPHASIS:
        raise Refused(f"emphasis is one of {', '.join(EMPHASIS)}; got {shown(emphasis)}", 422)
    out["noise_source"] = SOURCES[source]
    if emphasis != "Original":
        out["emphasis"] = EMPHASIS[emphasis]
    if whole("CLIP_stop_at_last_layers", options["CLIP_stop_at_last_layers"], 1, 12) > 1:
        out["clip_skip"] = options["CLIP_stop_at_last_layers"]
    if options["eta_noise_seed_delta"]:
        out["ensd"] = whole("eta_noise_seed_delta", options["eta_noise_seed_delta"])
    if options["comma_padding_backtrack"] != 20:
        out["comma_backtrack"] = whole("comma_padding_backtrack", options["comma_padding_backtrack"], 0)
    if options["sd_vae"] not in AUTOMATIC:
        out["vae"] = server.library.find("vae", str(options["sd_vae"])).name
    skips = {
        "sigma": number("s_min_uncond", options["s_min_uncond"], 0),
        "all_steps": flag("s_min_uncond_all", options["s_min_uncond_all"]),
        "early": number("skip_early_cond", options["skip_early_cond"], 0, 1),
    }
    if skips["sigma"] or skips["early"]:
        out |= {"guidance": "skip", "guidance_options": {name: value for name, value in skips.items() if value}}
    patches = patches_of(options, task)
    return {**out, "patches": patches} if patches else out


def patches_of(options: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """Returns the patches of a task: "txt2img", "img2img" or "hires", the second pass of txt2img."""
    return [*_merging(options, task), *_tiling(options)]


def _merging(options: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """Returns the patch of token merging. A ratio for the task counts unless it is 0."""
    names = {"txt2img": "token_merging_ratio", "img2img": "token_merging_ratio_img2img",
             "hires": "token_merging_ratio_hr"}  # fmt: skip
    ratios = {kind: number(name, options[name], 0, 0.9) for kind, name in names.items()}
    chosen = ratios[task] or ratios["txt2img"]
    # At most three of four places can be joined; A1111 draws no random targets
    return [{"name": "token_merging", "ratio": min(chosen, 0.75), "random": False}] if chosen else []


def _tiling(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the patch of HyperTile."""
    most = {"depth": 3, "tile": LARGEST, "swap_size": MOST_SWAPS}
    names = {"depth": "hypertile_max_depth_unet", "tile": "hypertile_max_tile_unet",
             "swap_size": "hypertile_swap_size_unet"}  # fmt: skip
    depth, tile, swap_size = (whole(name, options[name], 0, most[kind]) for kind, name in names.items())
    if not flag("hypertile_enable_unet", options["hypertile_enable_unet"]):
        return []
    own = {"tile_size": max(SMALLEST, tile), "swap_size": max(1, swap_size), "levels": depth + 1}
    return [{"name": "hypertile", **own}]
