"""Arguments of public functions: other tools' names, None, values of the wrong kind, types by any name."""

import dataclasses
import inspect
import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import sdjax
from sdjax import convert, samplers
from sdjax.checks import arguments, hints
from sdjax.checks.arguments import whole
from sdjax.pipeline.model import cast
from sdjax.tasks.resolve import make_sampler

import models

TASKS = ("text_to_image", "image_to_image", "two_pass", "inpaint", "outpaint", "detail", "depth_to_image",
         "estimate_depth", "animate", "upscale", "image_variations", "prior_to_image")  # fmt: skip
FUNCTIONS = {
    **{name: getattr(sdjax, name) for name in (*TASKS, "load")},
    "Prior.load": sdjax.Prior.load, "SafetyChecker.load": sdjax.SafetyChecker.load, "Prior.embed": sdjax.Prior.embed,
}  # fmt: skip
PICTURE = np.zeros((64, 64, 3), np.uint8)


def takes(function):
    """Returns the names of all arguments that a function understands, by its documented signature."""
    return set(inspect.signature(function).parameters) - {"options"}


# Name elsewhere -> ours, where the function has it
DIFFUSERS = {
    "num_inference_steps": "num_steps", "generator": "seed", "callback_on_step_end": "on_step", "callback": "on_step",
    "num_images_per_prompt": "num_images", "mask_image": "mask", "cfg_scale": "guidance_scale", "cfg": "guidance_scale",
    "sampler_name": "sampler", "sampler_index": "sampler", "scheduler": "sampler", "denoising_strength": "strength",
    "denoise": "strength", "output_type": "output", "rescale_cfg": "guidance_rescale", "noise": "latents",
    "torch_dtype": "dtype", "device": "devices", "init_image": "image",
}  # fmt: skip
# What no function has
FOREIGN = ("output_type", "latents", "prompt_embeds", "pooled_prompt_embeds", "guidance_rescale", "clip_skip",
           "cross_attention_kwargs", "safety_checker", "use_safetensors", "return_dict", "ip_adapter_image",
           "local_files_only", "torch_dtype", "device_map", "cache_dir")  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_unknown_argument_is_a_type_error_that_names_ours(function):
    function = FUNCTIONS[function]
    known = takes(function)
    for name in {*DIFFUSERS, *FOREIGN, "strengthh", "prompt_", "colour"} - known:
        with pytest.raises(TypeError) as caught:
            function(**{name: None})
        said = str(caught.value)
        assert f" argument {name}" in said
        assert "\n" not in said
        if DIFFUSERS.get(name) in known:
            assert said.endswith(f"here it is {DIFFUSERS[name]}")
        elif name in FOREIGN:
            assert len(said.partition(": ")[2]) > 10, said


@pytest.mark.parametrize(
    ("function", "name", "hint"),
    [
        ("text_to_image", "image", "image_to_image"), ("text_to_image", "strength", "image_to_image"),
        ("text_to_image", "mask_image", "inpaint"), ("inpaint", "height", "size of the picture"),
        ("animate", "generator", "here it is seeds"), ("animate", "batch_size", "here it is batch"),
        ("text_to_image", "num_step", "did you mean num_steps"), ("load", "dtyp", "did you mean dtype"),
        ("load", "pretrained_model_name_or_path", "here it is path"), ("load", "device", "devices="),
        ("text_to_image", "vae", "sdjax.load"), ("outpaint", "mask_blur", "here it is feather"),
        ("text_to_image", "CFG", "here it is guidance_scale"),
    ],
)  # fmt: skip
def test_the_hint_is_the_functions(function, name, hint):
    with pytest.raises(TypeError, match=hint):
        FUNCTIONS[function](**{name: None})


def test_a_path_is_no_pipeline():
    for name in TASKS:
        with pytest.raises(TypeError, match=r"takes a Pipeline first, as sdjax.load\('model.ckpt'\)"):
            FUNCTIONS[name]("model.ckpt", "a cat")


def test_every_hint_names_an_argument_that_some_function_has():
    known = set().union(*map(takes, FUNCTIONS.values()))
    assert {ours for several in hints.OURS.values() for ours in several} <= known


def test_diffusers_methods_have_a_hint():
    pipe = models.pipeline()
    for name in ("to", "cuda", "from_pretrained", "scheduler", "enable_xformers_memory_efficient_attention", "unet",
                 "enable_attention_slicing", "load_lora_weights", "safety_checker", "decod"):  # fmt: skip
        with pytest.raises(AttributeError, match=rf"a Pipeline has no attribute '{name}': \w+"):
            getattr(pipe, name)
    assert not hasattr(pipe, "_repr_html_")
    with pytest.raises(TypeError, match="text_to_image"):
        pipe("a cat")


def test_names_that_the_package_lacks_have_a_hint():
    for name, hint in {"from_pretrained": "sdjax.load", "StableDiffusionPipeline": "sdjax.load",
                       "txt2img": "text_to_image", "text_to_imag": "text_to_image"}.items():  # fmt: skip
        with pytest.raises(AttributeError, match=f"no attribute '{name}'.*{hint}"):
            getattr(sdjax, name)


SEEDS = [1.5, 1.0, True, "3", b"3", -1, 2**64, np.float32(1), math.nan, np.bool_(True), jnp.bool_(True), [1.5], ["a"],
         [True], [[1]], {}, object(), [2**64], (-1,), 1j]  # fmt: skip


def test_a_seed_is_a_whole_number_of_64_bits():
    for seed in SEEDS:
        with pytest.raises(ValueError, match="a seed (is a whole number|lies between)") as caught:
            sdjax.text_to_image(models.pipeline(), "a", seed=seed)
        assert "\n" not in str(caught.value)


def test_a_seed_that_counts_on_out_of_range_is_refused():
    with pytest.raises(ValueError, match="a seed lies between"):
        sdjax.text_to_image(models.pipeline(), "a", seed=2**64 - 1, num_images=2)


def test_whole_numbers_of_any_library_are_seeds():
    many = [
        7,
        np.int64(7),
        np.uint8(7),
        jnp.int32(7),
        np.array(7),
        [7],
        (7,),
        np.array([7]),
        range(7, 8),
        jnp.array([7]),
    ]
    for seed in many:
        assert arguments.seeds(seed, 1) == [7]


def test_none_is_the_default_seed_and_the_empty_negative_prompt():
    from sdjax.tasks.animate import check_keyframes
    from sdjax.tasks.expand import expand as requests

    def expand(prompt, negative_prompt, seed, num_images):
        made = requests(prompt, negative_prompt=negative_prompt, seed=seed, num_images=num_images)
        return tuple(map(list, zip(*((one.prompt, one.negative_prompt, one.seed) for one in made))))

    assert expand("a", None, None, 1) == expand("a", "", 0, 1)
    assert expand(["a", "b"], [None, "c"], [None, None], 1) == expand(["a", "b"], ["", "c"], 0, 1)
    assert expand(["a", "b"], None, [5, None], 1) == (["a", "b"], ["", ""], [5, 1])
    assert expand("a", (None,), None, 3) == expand("a", "", 0, 3)
    assert check_keyframes(["a", "b"], None, None) == check_keyframes(["a", "b"], "", 0)


def test_a_prompt_is_a_text():
    for prompt in (None, 3, b"a", [None], ["a", 3], {"a": 1}, True):
        with pytest.raises(ValueError, match="prompt is a text, or a sequence of texts; got"):
            sdjax.text_to_image(models.pipeline(), prompt)


NUMBERS = [True, "3", None, math.nan, math.inf, -math.inf, [1], object(), np.bool_(True), 1j, "7,5"]
WHOLE = [*NUMBERS, 1.5, np.float32(2.5), -1]
BAD = (
    [("text_to_image", (), "num_steps", value) for value in (*WHOLE, 0, 20.0) if value is not None]
    + [("text_to_image", (), "num_images", value) for value in (*WHOLE, 0)]
    + [("text_to_image", (), name, value) for name in ("height", "width") for value in WHOLE if value is not None]
    + [("text_to_image", (), "guidance_scale", value) for value in NUMBERS if value is not None]
    + [("text_to_image", (), "eta", value) for value in (*NUMBERS, -1) if value is not None]
    + [("image_to_image", (PICTURE,), "strength", value) for value in (*NUMBERS, -0.1, 1.1) if value not in (None, [1])]
    + [("two_pass", (), "enlarge", value) for value in (*NUMBERS, 0.5)]
    + [("inpaint", (PICTURE, PICTURE[..., 0]), name, value) for name in ("padding", "feather") for value in WHOLE]
    + [("outpaint", (PICTURE,), "expand", value) for value in (64, "64", [64], [1.5] * 4, [True] * 4, ["8"] * 4)]
    + [("text_to_image", (), "exact", value) for value in ("no", None, 2, 0.5)]
    + [("text_to_image", (), "devices", value) for value in ("cpu", [], ["cpu"], 3)]
    + [("text_to_image", (), "progress", True)]
    + [("text_to_image", (), "sampler", value) for value in (3, "dimm", True)]
    + [("text_to_image", (), "spacing", value) for value in (3, "karas")]
)


def test_values_of_another_kind_are_one_sentence(monkeypatch):
    monkeypatch.setattr("sdjax.pipeline.model.Pipeline.on", None)  # no network is run
    for task, given, name, value in BAD:
        if value == [1] and name in ("num_steps", "guidance_scale", "eta"):
            continue  # one for each of one picture
        given = given if task == "outpaint" else (*given, "a")
        with pytest.raises(ValueError, match=name) as caught:
            getattr(sdjax, task)(models.pipeline(), *given, **{name: value})
        assert "\n" not in str(caught.value)


def test_animations_values_too():
    bad = [(name, value) for name in ("frames", "batch") for value in WHOLE if (name, value) != ("frames", None)]
    bad += [("prompt_strength", value) for value in (*NUMBERS, 2)] + [("loop", "no"), ("seeds", 1.5), ("seeds", [True])]
    for name, value in bad:
        with pytest.raises(ValueError, match="a seed" if name == "seeds" else name):
            sdjax.animate(models.pipeline(), ["a", "b"], **{name: value})


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("FP32", "float32"),
     (jnp.bfloat16, "bfloat16"), (jnp.float32, "float32"), (np.float16, "float16"), (np.dtype("float32"), "float32"),
     (jnp.dtype("bfloat16"), "bfloat16"), (np.dtype(np.float16), "float16"), (ml_dtypes.bfloat16, "bfloat16")],
    ids=str,
)  # fmt: skip
def test_types_have_many_names(dtype, name):
    pipe = sdjax.load(dtype=dtype)
    assert pipe.dtype == name
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(pipe.params)} == {name}
    assert sdjax.Pipeline(pipe.config, {}, pipe.tokenizer, dtype=dtype).dtype == name
    assert jax.tree.leaves(cast({"a": np.zeros(1, np.float32)}, dtype))[0].dtype == jnp.dtype(name)
    assert convert.load_model(sdjax.loading.builtin.folder(), dtype=dtype) is not None


class TorchType:
    """What PyTorch's types look like."""

    def __str__(self):
        return "torch.float16"


def test_other_types_are_refused():
    for load in (sdjax.load, sdjax.Prior.load, sdjax.SafetyChecker.load, convert.load_model):
        for dtype in (float, "float64", np.int32, 16, True, "", object(), TorchType()):
            with pytest.raises(ValueError, match="dtype is one of float32, bfloat16, float16; got") as caught:
                load("builtin", dtype=dtype)
            assert ("write 'float16'" in str(caught.value)) == isinstance(dtype, TorchType)


@dataclasses.dataclass(frozen=True)
class Bare:
    """A frozen dataclass with a method `steps` and nothing else."""

    eta: float = 0.0

    def steps(self, schedule, num_steps):
        return samplers.DDIM(eta=self.eta).steps(schedule, num_steps)


class Plain:
    """No dataclass at all, with `skip`."""

    def steps(self, schedule, num_steps, *, skip=0):
        return samplers.DDIM().steps(schedule, num_steps, skip=skip)


def test_a_sampler_of_ones_own_runs(monkeypatch):
    pipe = models.pipeline()
    few = {"seed": 1, "num_steps": 2, "guidance_scale": 1.0, "devices": jax.devices()[:1]}
    ddim = sdjax.text_to_image(pipe, "a", sampler="ddim", **few)
    monkeypatch.setitem(samplers.SAMPLERS, "mine", Bare)
    for mine in (Bare(), Plain(), "mine"):
        np.testing.assert_array_equal(sdjax.text_to_image(pipe, "a", sampler=mine, **few), ddim)
        half = [
            sdjax.image_to_image(pipe, ddim[0], "a", strength=0.5, sampler=which, **few) for which in (mine, "ddim")
        ]
        np.testing.assert_array_equal(*half)
    noisy = [sdjax.text_to_image(pipe, "a", sampler=which, eta=1.0, **few) for which in (Bare(), "ddim")]
    np.testing.assert_array_equal(*noisy)


@pytest.mark.parametrize("rows", [None, [1, 2], samplers.row(1, 2, 0, calls=[1]), "batch", "none"])
def test_a_sampler_that_returns_no_rows_is_refused(rows):
    class Wrong:
        def steps(self, schedule, num_steps):
            good = samplers.DDIM().steps(schedule, num_steps)
            made = {"batch": samplers.batch([good]), "none": jax.tree.map(lambda a: a[:0], good)}
            return made[rows] if isinstance(rows, str) else rows

    with pytest.raises(ValueError, match="the sampler Wrong: its steps return at least one row, joined by"):
        sdjax.text_to_image(models.pipeline(), "a", sampler=Wrong(), num_steps=3)


def test_a_sampler_that_is_none_is_refused():
    for wrong in (samplers.Heun, object(), {"steps": 3}):
        with pytest.raises(ValueError, match="sampler is a name or a sampler, an object with a method steps; got"):
            sdjax.text_to_image(models.pipeline(), "a", sampler=wrong)
    with pytest.raises(ValueError, match="the nearest known ones are euler"):
        sdjax.text_to_image(models.pipeline(), "a", sampler="eulr")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Pipeline", "sdjax.load(path) loads a model"), ("Prior", "sdjax.Prior.load(path) loads one"),
     ("SafetyChecker", "sdjax.SafetyChecker.load(path) loads one")],
)  # fmt: skip
def test_classes_explain_diffusers_constructors_too(name, hint):
    with pytest.raises(AttributeError, match=re.escape(hint)):
        getattr(sdjax, name).from_pretrained("owner/name")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("DDIM", "ddim"),
        ("Euler a", "euler_ancestral"),
        ("k_euler_a", "euler_ancestral"),
        ("DPM++ 2M Karras", "dpmpp_2m"),
    ],
)
def test_other_tools_samplers_are_found(theirs, ours):
    assert make_sampler(theirs) == samplers.SAMPLERS[ours]()


def test_a_whole_number_as_a_float_is_told_how_to_write_it():
    with pytest.raises(ValueError, match="got 20.0: write 20$"):
        whole("num_steps", 20.0)
