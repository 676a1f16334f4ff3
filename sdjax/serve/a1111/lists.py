"""The routes that list what there is."""

import os
from collections.abc import Callable
from typing import Any

import jax

from sdjax import names
from sdjax.preprocessors import PREPROCESSORS
from sdjax.serve.a1111.options import Options
from sdjax.serve.engine.options import BUILT_IN_CONTROLS
from sdjax.serve.library import Entry
from sdjax.serve.server import Server
from sdjax.tasks.two_pass import A1111_UPSCALES

Answer = Callable[[], Any]


def answers(server: Server, options: Options) -> dict[str, Answer]:
    """Returns the functions that answer the paths of lists."""
    library = server.library

    def models() -> list[dict[str, Any]]:
        return [_model(server, one) for one in library.entries("checkpoint")]

    def loras() -> list[dict[str, Any]]:
        return [
            {"name": one.stem, "alias": one.stem, "path": one.name, "metadata": {}} for one in library.entries("lora")
        ]

    def embeddings() -> dict[str, Any]:
        known = {
            one.stem: {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": None, "vectors": None}
            for one in library.entries("embedding")
        }
        return {"loaded": known, "skipped": {}}

    def controls() -> list[str]:
        return [*BUILT_IN_CONTROLS, *(one.stem for one in library.entries("control"))]

    return {
        "/sdapi/v1/samplers": samplers,
        "/sdapi/v1/schedulers": schedulers,
        "/sdapi/v1/upscalers": lambda: [_upscaler(name) for name in ("None", "Lanczos", "Nearest")]
        + [_upscaler(one.stem, one.name) for one in library.entries("upscaler")],
        "/sdapi/v1/latent-upscale-modes": lambda: [
            {"name": name} for name in A1111_UPSCALES if name.startswith("Latent")
        ],
        "/sdapi/v1/sd-models": models,
        "/sdapi/v1/sd-vae": lambda: [{"model_name": one.name, "filename": one.name} for one in library.entries("vae")],
        "/sdapi/v1/sd-modules": lambda: [{"model_name": one.name,
        "filename": one.name} for one in library.entries("vae")],
        "/sdapi/v1/loras": loras,
        "/sdapi/v1/embeddings": embeddings,
        "/sdapi/v1/hypernetworks": lambda: [{"name": one.stem,
        "path": one.name} for one in library.entries("hypernetwork")],
        "/sdapi/v1/prompt-styles": lambda: [{"name": name, **one._asdict()} for name, one in library.styles().items()],
        "/sdapi/v1/face-restorers": list,
        "/sdapi/v1/realesrgan-models": list,
        "/sdapi/v1/scripts": lambda: {"txt2img": ["controlnet", "adetailer"], "img2img": ["controlnet", "adetailer"]},
        "/sdapi/v1/script-info": lambda: [
            {"name": name, "is_alwayson": True, "is_img2img": on_pictures, "args": []}
            for name in ("controlnet", "adetailer") for on_pictures in (False, True)
        ],
        "/sdapi/v1/extensions": list,
        "/sdapi/v1/cmd-flags": lambda: {"api": True, "listen": not server.settings.local, "port": server.settings.port},
        "/sdapi/v1/memory": lambda: memory(server),
        "/sdapi/v1/options": options.all,
        "/controlnet/version": lambda: {"version": 3},
        "/controlnet/model_list": lambda: {"model_list": controls()},
        "/controlnet/module_list": lambda: {"module_list": modules(), "module_detail": module_details()},
        "/controlnet/control_types": lambda: {"control_types": {"All": {
            "module_list": modules(), "model_list": ["None", *controls()], "default_option": "none",
            "default_model": "None",
        }}},
        "/controlnet/settings": lambda: {"control_net_unit_count": 8},
        "/internal/ping": dict,
    }  # fmt: skip


def samplers() -> list[dict[str, Any]]:
    """Returns the samplers by A1111's names, and those that only sdjax has by ours."""
    found = []
    for name, method in names.SAMPLERS.items():
        known = method.names.of("a1111")
        found.append({"name": known[0] if known else name, "aliases": [*known[1:], name], "options": {}})
    return found


def schedulers() -> list[dict[str, Any]]:
    """Returns the schedules by A1111's names."""
    automatic: dict[str, Any] = {
        "name": "automatic",
        "label": "Automatic",
        "aliases": None,
        "default_rho": -1,
        "need_inner_model": False,
    }
    found = [automatic]
    for name, known in names.SCHEDULES.items():
        label = known.of("a1111")
        found.append(
            {**automatic, "name": name, "label": label[0] if label else name, "aliases": list(label[1:]) or None}
        )
    return found


def modules() -> list[str]:
    """Returns the names of the preprocessors."""
    return ["none", "inpaint", *PREPROCESSORS]


def module_details() -> dict[str, Any]:
    """Returns the options of the preprocessors, as sliders."""
    return {
        name: {
            "model_free": False,
            "sliders": [
                {"name": option, "value": one.default, "min": one.low, "max": one.high}
                for option, one in module.options.items()
            ],
        }
        for name, module in PREPROCESSORS.items()
    }


def memory(server: Server) -> dict[str, Any]:
    """Returns how much memory there is, in bytes."""
    device = server.engine.device.mesh.devices.flat[0]
    there = device.memory_stats() or {}
    page, pages, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    ram = {"free": page * free, "used": page * (pages - free), "total": page * pages}
    if "bytes_limit" not in there:
        return {"ram": ram, "cuda": {"error": f"no figures of {jax.default_backend()}"}}
    total, used = there["bytes_limit"], there["bytes_in_use"]
    return {"ram": ram, "cuda": {"system": {"free": total - used, "used": used, "total": total}}}


def _model(server: Server, entry: Entry) -> dict[str, Any]:
    return {
        "title": server.library.title(entry),
        "model_name": entry.stem,
        "hash": server.library.short_hash(entry),
        "sha256": None,
        "filename": entry.name,
        "config": None,
    }


def _upscaler(name: str, path: str | None = None) -> dict[str, Any]:
    return {"name": name, "model_name": None, "model_path": path, "model_url": None, "scale": 4}
