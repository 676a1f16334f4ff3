"""Unknown names: every table that a user chooses from names the nearest known one."""

import pytest

from sdjax import configs, few_step, preprocessors
from sdjax.adapters.table import make_settings
from sdjax.config import ModelConfig
from sdjax.convert.containers import quantising
from sdjax.convert.merge.recipe import Settings
from sdjax.diffusion.rules import make_rules
from sdjax.samplers.diffusers import build
from sdjax.serve.engine import tasks
from sdjax.serve.engine.work import Work
from sdjax.spelling import meant, nearest
from sdjax.tasks import two_pass
from sdjax.train import judges
from sdjax.train.planning import accelerators

UNKNOWN = {
    "a patch": (lambda: make_settings("deep_cashe"), "deep_cache"),
    "a patch's option": (lambda: make_settings("deep_shrink:facter=2"), "factor"),
    "a measure": (lambda: judges.choose(["clip-skore"], (), reference=False, builtin=False), "clip-score"),
    "a guidance": (lambda: make_rules("intervall"), "interval"),
    "a guidance's option": (lambda: make_rules("interval", {"interval.stopp": 1}), "stop"),
    "a scheduler": (lambda: build.from_diffusers({"_class_name": "DDIMSchedular"}), "DDIMScheduler"),
    "a preprocessor": (lambda: preprocessors.checked_options("cany", {}), "canny"),
    "a released model": (lambda: configs.get("sd11"), "sd1"),
    "a distillation": (lambda: few_step.recipe_of("hiper:8"), "hyper"),
    "an accelerator": (lambda: accelerators.accelerator_named("h1000"), "h100"),
    "a type to quantise to": (lambda: quantising.check_choice("q8_o"), "q8_0"),
    "a way to enlarge": (lambda: two_pass.check_upscale("latent bicubik"), "Latent (bicubic)"),
    "a field of a model": (lambda: ModelConfig.from_dict({"nam": "x"}), "name"),
    "a merging's method": (lambda: Settings(method="tiess"), "ties"),
    "a server's task": (lambda: tasks.check(Work("txt2imgg", {}), None), "txt2img"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_unknown_name_is_answered_with_the_nearest(what):
    make, near = UNKNOWN[what]
    with pytest.raises(ValueError, match="did you mean") as caught:
        make()
    assert f"did you mean {near}?" in str(caught.value)


def test_case_and_dashes_do_not_count_and_a_strange_name_has_none():
    assert nearest("Deep Shrink", ["deep_shrink", "deep_cache"]) == "deep_shrink"
    assert meant("FD_DINOv2", ["fid", "fd-dinov2"]) == " (did you mean fd-dinov2?)"
    for strange in ("zebra", "", 3, None, "x" * 10**6):
        assert meant(strange, ["deep_shrink", "fid"]) == ""
