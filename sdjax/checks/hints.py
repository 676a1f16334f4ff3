"""Translates other tools' names into ours, for errors about unknown arguments and attributes.

The other tools are diffusers, AUTOMATIC1111's web UI and its API, ComfyUI, k-diffusion and CompVis's scripts.
"""

import difflib
import functools
import inspect
import os
import typing
from collections.abc import Callable, Collection
from typing import Any

# Our names, by the names of other tools. The error names the first one that the function has
OURS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("num_inference_steps", "steps", "ddim_steps", "sampling_steps", "n_steps", "num_sampling_steps",
                     "inference_steps", "ddpm_num_timesteps", "timesteps"), ("num_steps",)),
    **dict.fromkeys(("num_images_per_prompt", "batch_size", "n_iter", "n_samples", "num_samples", "batch_count",
                     "num_images_per_caption", "images_per_prompt"), ("num_images", "batch")),
    **dict.fromkeys(("generator", "noise_seed", "random_seed", "manual_seed", "rng", "key", "prng_seed",
                     "seeds", "seed"), ("seed", "seeds")),
    **dict.fromkeys(("subseed",), ("variation_seed",)),
    **dict.fromkeys(("subseed_strength", "variation_seed_strength"), ("variation_strength",)),
    **dict.fromkeys(("seed_resize_from", "seed_resize_from_h", "seed_resize_from_w"), ("seed_resize",)),
    **dict.fromkeys(("eta_noise_seed_delta",), ("ensd",)),
    **dict.fromkeys(("comma_padding_backtrack",), ("comma_backtrack",)),
    **dict.fromkeys(("use_old_scheduling",), ("old_prompt_editing",)),
    **dict.fromkeys(("randn_source", "rng_source"), ("noise_source",)),
    **dict.fromkeys(("noise_inds",), ("noise_batch",)),
    **dict.fromkeys(("patch",), ("patches",)),
    **dict.fromkeys(("cfg_scale", "cfg", "scale", "unconditional_guidance_scale", "cond_scale",
                     "true_cfg_scale"), ("guidance_scale",)),
    **dict.fromkeys(("negative", "neg_prompt", "n_prompt", "negative_prompts", "uc", "uncond"), ("negative_prompt",)),
    **dict.fromkeys(("prompts", "prompt", "text", "positive", "caption"), ("prompt", "prompts")),
    "scheduler": ("sampler", "schedule"),
    **dict.fromkeys(("sampler_name", "sampler_index", "sampling_method", "sample_method", "solver"),
                    ("sampler",)),
    **dict.fromkeys(("denoising_strength", "denoise", "noise_strength", "img2img_strength"), ("strength",)),
    **dict.fromkeys(("callback_on_step_end", "callback", "callback_steps", "callback_on_step_end_tensor_inputs",
                     "step_callback", "img_callback"), ("on_step", "progress")),
    **dict.fromkeys(("progress_bar", "show_progress"), ("progress",)),
    **dict.fromkeys(("output_type",), ("output",)),
    **dict.fromkeys(("latent", "latent_image", "x_t", "init_noise", "noise"), ("latents",)),
    **dict.fromkeys(("cfg_rescale", "rescale_cfg", "rescale"), ("guidance_rescale",)),
    **dict.fromkeys(("lora", "lora_path", "lora_weights"), ("adapters", "loras")),
    "control": ("controls",),
    "image_prompt": ("image_prompts",),
    **dict.fromkeys(("h",), ("height",)),
    **dict.fromkeys(("w",), ("width",)),
    **dict.fromkeys(("ddim_eta",), ("eta",)),
    **dict.fromkeys(("timestep_spacing", "schedule_type", "sigmas", "sigma_schedule", "scheduler_name"),
                    ("schedule", "spacing")),
    **dict.fromkeys(("rescale_betas_zero_snr", "zero_snr", "zsnr"), ("zero_terminal_snr",)),
    **dict.fromkeys(("init_image", "init_images", "init_img", "input_image", "image_path", "images", "pixels",
                     "raw_image"), ("image",)),
    **dict.fromkeys(("mask_image", "mask_img", "inpaint_mask", "masks"), ("mask",)),
    **dict.fromkeys(("mask_blur", "grow_mask_by"), ("feather",)),
    **dict.fromkeys(("inpaint_full_res",), ("only_masked",)),
    **dict.fromkeys(("padding_mask_crop", "inpaint_full_res_padding"), ("padding",)),
    **dict.fromkeys(("device", "gpu", "gpu_id"), ("devices",)),
    **dict.fromkeys(("hr_scale", "upscale_by", "resize_scale"), ("enlarge",)),
    **dict.fromkeys(("hr_upscaler", "latent_upscale_mode"), ("upscale",)),
    **dict.fromkeys(("image_embeds", "image_embeddings"), ("embeddings",)),
    **dict.fromkeys(("prior_num_inference_steps",), ("prior_steps",)),
    **dict.fromkeys(("prior_guidance_scale",), ("prior_scale",)),
    **dict.fromkeys(("num_frames", "video_length", "max_frames"), ("frames",)),
    **dict.fromkeys(("deterministic", "reproducible"), ("exact",)),
    # sdjax.load's
    **dict.fromkeys(("torch_dtype", "precision", "weight_dtype", "param_dtype", "compute_dtype"), ("dtype",)),
    **dict.fromkeys(("pretrained_model_name_or_path", "pretrained_model_link_or_path", "pretrained_model_path", "ckpt",
                     "ckpt_path", "ckpt_name", "checkpoint", "checkpoint_path", "model", "model_id", "model_name",
                     "model_path", "filename", "repo_id", "repo", "name", "folder"), ("path",)),
    **dict.fromkeys(("original_config", "original_config_file", "config_file", "config_path"), ("config",)),
    **dict.fromkeys(("prediction_type", "parameterization"), ("prediction",)),
    **dict.fromkeys(("extract_ema", "use_ema"), ("ema",)),
    **dict.fromkeys(("vae_path", "vae_name", "vae_file"), ("vae",)),
    **dict.fromkeys(("depth_estimator",), ("depth",)),
    **dict.fromkeys(("image_encoder",), ("vision",)),
    **dict.fromkeys(("vocab_file", "vocabulary"), ("vocab",)),
}  # fmt: skip

_LOADED = "it belongs to the model: sdjax.load(path, {}=...)"
_ADAPTER = "sdjax knows no adapters"
_FILES = "sdjax finds the files itself; leave it out (variant= selects one of a folder's sets)"
# Arguments without a counterpart here, or with one in another place
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("return_dict", "save_images", "send_images"),
                    "pictures are returned as uint8 [b, h, w, 3]; PIL.Image.fromarray(pictures[0]) is Pillow's"),
    **dict.fromkeys(("latents", "latent", "latent_image", "x_t", "init_noise", "noise"),
                    "its noise depends on the seed alone, seed="),
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), "it encodes its prompts itself; give their texts"),
    **dict.fromkeys(("pooled_prompt_embeds", "prompt_embeds_mask", "negative_pooled_prompt_embeds",
                     "prompt_attention_mask", "conditioning"),
                    "Stable Diffusion 1 and 2 take prompt_embeds and negative_prompt_embeds alone"),
    **dict.fromkeys(("guidance_rescale", "cfg_rescale", "rescale_cfg"), "only guidance of a picture is rescaled"),
    **dict.fromkeys(("output_type", "output"), "it returns one kind of thing"),
    **dict.fromkeys(("clip_skip", "stop_at_clip_layer"), "the text encoder's last layer is the model's own"),
    **dict.fromkeys(("cross_attention_kwargs", "attention_kwargs", "ip_adapter_image", "ip_adapter_image_embeds",
                     "control_image", "controlnet", "controlnet_conditioning_scale", "lora", "lora_scale", "loras",
                     "adapter_weights", "motion_adapter"), _ADAPTER),
    **dict.fromkeys(("safety_checker", "requires_safety_checker", "feature_extractor", "safety"),
                    "no checker runs by itself; sdjax.SafetyChecker.load(path) is one"),
    **dict.fromkeys(("use_safetensors", "low_cpu_mem_usage", "from_flax", "from_pt", "trust_remote_code",
                     "custom_pipeline", "use_onnx", "weights_only", "ignore_mismatched_sizes"), _FILES),
    **dict.fromkeys(("safe_serialization", "max_shard_size"), "safetensors are written, one file a network"),
    **dict.fromkeys(("device", "devices", "device_map", "offload_folder", "max_memory"),
                    "choose the devices in a task, such as devices=jax.devices('gpu')"),
    **dict.fromkeys(("cache_dir", "force_download", "resume_download", "proxies"),
                    "set the hub's cache by the environment variable HF_HOME"),
    "local_files_only": "set the environment variable HF_HUB_OFFLINE=1",
    **dict.fromkeys(("token", "use_auth_token"), "set the environment variable HF_TOKEN"),
    **dict.fromkeys(("subfolder", "weight_name"), "name the file in the path, such as owner/name/FILE.safetensors"),
    **dict.fromkeys(("unet", "text_encoder", "tokenizer"), "a model is loaded whole; Pipeline.params holds its parts"),
    **dict.fromkeys(("torch_dtype", "dtype"), _LOADED.format("dtype")),
    **{name: _LOADED.format(name) for name in ("vae", "variant", "revision", "config", "prediction", "ema")},
    **dict.fromkeys(("scheduler", "sampler", "sampler_name"), "it is chosen by a task's sampler="),
    **dict.fromkeys(("image", "init_image", "images"),
                    "sdjax.image_to_image, inpaint, depth_to_image, upscale and image_variations start from a picture"),
    **dict.fromkeys(("mask", "mask_image"), "sdjax.inpaint and sdjax.outpaint take a mask"),
    **dict.fromkeys(("strength", "denoising_strength", "denoise"),
                    "sdjax.image_to_image, two_pass, inpaint and depth_to_image have one"),
    **dict.fromkeys(("height", "width"), "the result has the size of the picture given; resize that first"),
    **dict.fromkeys(("enable_hr", "hr_scale", "hr_upscaler", "hires"), "sdjax.two_pass makes a second, larger pass"),
    **dict.fromkeys(("tiling", "restore_faces", "styles", "override_settings", "refiner_checkpoint"),
                    "sdjax has nothing like it"),
}  # fmt: skip

ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(("to", "cuda", "cpu", "tpu", "device"),
                    "choose the devices in a task, such as devices=jax.devices('gpu'); the default is the best kind"),
    **dict.fromkeys(("half", "float", "bfloat16"), "the type is chosen by sdjax.load(path, dtype=...)"),
    **dict.fromkeys(("from_pretrained", "from_single_file"), "sdjax.load(path) loads a model"),
    "save_pretrained": "save(path, to='diffusers') writes such a folder",
    **dict.fromkeys(("scheduler", "sampler"), "it is chosen by a task's sampler="),
    **dict.fromkeys(("unet", "vae", "text_encoder", "components"), "the parts' parameters are params['unet'], ..."),
    "safety_checker": "sdjax.SafetyChecker.load(path) is one",
    **dict.fromkeys(("load_lora_weights", "fuse_lora", "load_textual_inversion", "load_ip_adapter", "set_adapters"),
                    _ADAPTER),
    "generate": "sdjax.text_to_image(pipe, prompt) makes pictures",
}  # fmt: skip
_SWITCHES = ("enable_", "disable_", "set_progress", "upcast_", "unet_")
NAMES: dict[str, str] = {
    **dict.fromkeys(("from_pretrained", "from_single_file", "load_model", "from_checkpoint"), "sdjax.load loads one"),
    "txt2img": "sdjax.text_to_image makes pictures of a prompt",
    "img2img": "it is sdjax.image_to_image",
    "depth2img": "it is sdjax.depth_to_image",
    "variations": "it is sdjax.image_variations",
    "save": "a pipeline's method save writes it",
}


_of_any: set[str] = set()  # arguments of all functions that explain theirs


def explains_arguments(also: Callable | None = None, *, task: bool = True) -> Callable[[Callable], Callable]:
    """Returns a decorator. It makes the TypeError for an unknown argument name our argument for it.

    The function's `**options` are the fields of their TypedDict, or the arguments of the function `also`.
    """

    def decorate(function: Callable) -> Callable:
        signature = unpacked(function, also)
        known = [name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]
        _of_any.update(known)

        @functools.wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            for name in given:
                if name not in known:
                    subject = (
                        "no task" if task and name not in _of_any else function.__qualname__.removesuffix(".__init__")
                    )
                    raise TypeError(unknown_argument(subject, name, known))
            if task and args and isinstance(args[0], str | bytes | os.PathLike):
                raise TypeError(f"{function.__name__} takes a Pipeline first, as sdjax.load({args[0]!r}) returns it")
            return function(*args, **given)

        explained: Any = checked
        explained.__kwdefaults__ = inspect.unwrap(function).__kwdefaults__  # whoever asks for the defaults sees them
        explained.__signature__ = signature
        return explained

    return decorate


def unpacked(function: Callable, also: Callable | None = None) -> inspect.Signature:
    """Returns a function's signature with its `**options` as optional arguments.

    These are the entries of their Unpack[TypedDict], or the keyword arguments of the function `also`.
    """
    signature = inspect.signature(function)
    parameters = dict(signature.parameters)
    rest = next((p for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    if rest is not None and (entries := typing.get_args(rest.annotation)):
        del parameters[rest.name]
        for name, kind in entries[0].__annotations__.items():
            parameters[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=kind)
    elif rest is not None and also is not None:
        del parameters[rest.name]
        others = inspect.signature(also).parameters.values()
        parameters |= {p.name: p for p in others if p.kind is p.KEYWORD_ONLY and p.name not in parameters}
    return signature.replace(parameters=list(parameters.values()))


def unknown_argument(subject: str, name: str, known: Collection[str]) -> str:
    """Returns the sentence about an argument that a function does not have."""
    plain = name.lower()
    ours = next((ours for ours in OURS.get(plain, ()) if ours in known), None)
    if ours is not None:
        hint = f": here it is {ours}"
    else:
        hint = _nearest(plain, known) or (f": {ELSEWHERE[plain]}" if plain in ELSEWHERE else "")
    return f"{subject} has {'an' if subject == 'no task' else 'no'} argument {name}{hint}"


class Explained(type):
    """A metaclass whose classes explain missing attributes, such as Pipeline.from_pretrained."""

    def __getattr__(cls, name: str) -> Any:
        raise AttributeError(unknown_attribute(name, dir(cls), cls.__name__))


def unknown_attribute(name: str, known: Collection[str], kind: str = "Pipeline") -> str:
    """Returns the sentence about an attribute that a pipeline, or another `kind` of thing, does not have."""
    if name.startswith("from_") and kind != "Pipeline":
        hint = f": sdjax.{kind}.load(path) loads one"
    elif name in ATTRIBUTES:
        hint = f": {ATTRIBUTES[name]}"
    elif name.startswith(_SWITCHES):
        hint = ": there is nothing to switch on; attention and large pictures take little memory as they are"
    else:
        hint = _nearest(name, known)
    return f"a {kind} has no attribute {name!r}{hint}"


def unknown_name(name: str, known: Collection[str]) -> str:
    """Returns the sentence about a name that the package does not have."""
    if name in NAMES:
        hint = f": {NAMES[name]}"
    elif name.endswith("Scheduler"):
        hint = ": a task's sampler= chooses how noise is taken away, as sampler='euler'"
    elif "Pipeline" in name:
        hint = ": sdjax.load(path) loads a model of any kind, and sdjax.text_to_image and others make pictures with it"
    else:
        hint = _nearest(name, known)
    return f"module 'sdjax' has no attribute {name!r}{hint}"


def _nearest(name: str, known: Collection[str]) -> str:
    """Returns the end of a sentence with the known name that is most similar, or "" if none is similar."""
    near = difflib.get_close_matches(name, known, 1, 0.75)
    return f": did you mean {near[0]}?" if near else ""
