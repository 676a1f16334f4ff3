"""The shared flags: names, and what they mean to JAX."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

from sdjax import names, noise, samplers
from sdjax.checks.effects import in_use
from sdjax.pictures.image import ROUNDINGS
from sdjax.samplers.start import COUNTINGS
from sdjax.scripts import txt2img
from sdjax.scripts.shared import noise_flags, options, runtime
from sdjax.tasks import compat, recording
from sdjax.tasks.request import Request

COMPVIS = (
    "--prompt --outdir --skip_grid --skip_save --ddim_steps --plms --dpm_solver --fixed_code --ddim_eta --n_iter --H "
    "--W --C --f --n_samples --n_rows --scale --from-file --config --ckpt --seed --precision"
)
STABILITY = "--steps --dpm --device --repeat"
OURS = "--sampler --negative-prompt --parallel --dtype --vae --ema --prediction --exact --debug"


def test_every_flag_of_both_references_is_there() -> None:
    known = {flag for action in txt2img.make_parser()._actions for flag in action.option_strings}
    assert set(f"{COMPVIS} {STABILITY} {OURS}".split()) <= known


def test_defaults_are_those_of_the_reference() -> None:
    args = txt2img.make_parser().parse_args([])
    assert args.outdir == "outputs/txt2img-samples"
    assert (args.steps, args.n_iter, args.n_samples, args.n_rows, args.seed) == (50, 2, 3, 0, 42)
    assert args.precision == "autocast"


def test_names_of_samplers_are_those_there_are() -> None:
    assert set(names.SAMPLERS) == set(samplers.SAMPLERS)
    assert set(recording.WEB_UI_NEAREST) <= set(samplers.SPACINGS)


def test_names_of_tools_and_noise_sources_are_those_there_are() -> None:
    assert noise_flags.NOISE_SOURCES == noise.NOISE_SOURCES
    assert noise_flags.TOOLS == compat.TOOLS
    assert tuple(COUNTINGS) == noise_flags.COUNTINGS
    assert tuple(ROUNDINGS) == noise_flags.ROUNDINGS


def test_variations_keep_the_seed_and_count_the_variation_seed_up() -> None:
    args = txt2img.make_parser().parse_args(["--seed", "5", "--variation-seed", "9", "--variation-strength", "0.2"])
    assert noise_flags.varied(args, [5, 6, 7]) == {"seed": [5, 5, 5], "variation_seed": [9, 10, 11]}
    assert noise_flags.seeds_of(args, 6) == {"seed": 5, "variation_seed": 10}


def test_dpm_is_the_references_solver() -> None:
    # ldm/models/diffusion/dpm_solver/sampler.py: DPM-Solver++, multistep, order 2, uniform in time, lower order at the
    # end below 15 steps, and no step to zero noise
    solver = samplers.SAMPLERS[options.DPM]()
    assert isinstance(solver, samplers.DPMSolverMultistep)
    assert (solver.algorithm, solver.order) == ("dpmsolver++", 2)
    assert (solver.spacing, solver.solver_type, solver.lower_order_below) == ("time_uniform", "dpm_solver", 15)
    assert (solver.end, solver.denoise_to_zero) == ("sigma_min", False)


@pytest.mark.parametrize("name", names.SAMPLERS)
def test_every_option_of_every_sampler_can_be_set_to_its_default(name: str) -> None:
    default = samplers.SAMPLERS[name]()
    texts = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in in_use(default).items()
    ]
    assert runtime.make_sampler(name, texts) == default


@pytest.mark.parametrize("name", names.SAMPLERS)
def test_every_option_without_effect_is_refused_at_its_default_too(name: str) -> None:
    default = samplers.SAMPLERS[name]()
    for key in vars(default).keys() - in_use(default).keys():
        value = getattr(default, key)
        with pytest.raises(ValueError, match=f"{key} of the sampler {name} has no effect"):
            runtime.make_sampler(name, [f"{key}={str(value).lower() if isinstance(value, bool) else value}"])


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="spacing is given twice"):
        runtime.make_sampler("ddim", ["spacing=even", "spacing=karras"])
    with pytest.raises(ValueError, match="eta is given twice"):
        runtime.make_sampler("ddim", ["eta=1"], eta=0.5)
    with pytest.raises(ValueError, match="order is given twice: give it once"):
        runtime.make_sampler("unipc", ["order=1", "order=2"])
    assert runtime.make_sampler("plms", [], eta=0.0) == samplers.PLMS()  # as the references' scripts are called


def test_an_option_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="--sampler-option is NAME=VALUE; got '=1'"):
        runtime.make_sampler("ddim", ["=1"])


@pytest.mark.parametrize("name", ["Automatic", "automatic"])
def test_the_automatic_schedule_is_the_samplers_own(name) -> None:
    assert runtime.make_schedule(name, []) is None
    assert Request(schedule=name).schedule is None


def test_help_says_where_the_references_differ() -> None:
    text = re.sub(r"\s+", " ", txt2img.make_parser().format_help())
    assert "default: 2 (Stability: 3)" in text
    assert "(CompVis: 7.5, Stability: 9)" in text
    assert "512 or 768 (both references: 512)" in text
    assert "(Stability: cpu)" in text


def test_fingerprint_tells_files_apart_by_their_ends(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("a.ckpt", "b.ckpt", "c.ckpt"))
    data = bytes(3 * recording.ENDS)
    a.write_bytes(data)
    b.write_bytes(data[:-1] + b"\1")
    c.write_bytes(data + b"\0")
    found = [recording.fingerprint(path) for path in (a, b, c)]
    assert [f["name"] for f in found] == ["a.ckpt", "b.ckpt", "c.ckpt"]
    assert [f["bytes"] for f in found] == [len(data), len(data), len(data) + 1]
    assert len({f["sha256_of_ends"] for f in found}) == 3
    assert len(found[0]["sha256_of_ends"]) == 64


def test_fingerprint_of_a_folder_covers_its_model_files(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "model.safetensors"
    weights.write_bytes(b"a")
    first = recording.fingerprint(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert recording.fingerprint(tmp_path) == first
    assert recording.fingerprint(f"{tmp_path}/unet/..") == first
    weights.write_bytes(b"b")
    assert recording.fingerprint(tmp_path) != first


def test_model_of_the_hub_is_its_commit(tmp_path: Path) -> None:
    commit = "0123456789" * 4
    folder = tmp_path / "hub" / "models--owner--name" / "snapshots" / commit
    folder.mkdir(parents=True)
    assert recording.describe_model("owner/name", folder) == {"name": "owner/name", "commit": commit}
    (folder / "sd-1.5.ckpt").write_bytes(b"weights")
    assert recording.describe_model("owner/name/sd-1.5.ckpt", folder / "sd-1.5.ckpt")["commit"] == commit
    assert recording.describe_model(str(folder), folder) == recording.fingerprint(folder)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("v1-5.ckpt", "v1-5"),
        ("owner/sd-1.5", "sd-1.5"),
        ("owner/name/sd-1.5.safetensors", "sd-1.5"),
        ("sd1.5", "sd1.5"),
    ],
)
def test_web_ui_shows_a_models_name_without_its_ending(name: str, shown: str) -> None:
    known = {"sampler": "ddim", "sampler_options": {"spacing": "leading"}, "model": {"name": name}}
    given = known | dict.fromkeys(("steps", "guidance_scale", "seed", "width", "height")) | {"versions": {"sdjax": "1"}}
    assert recording.web_ui_fields(given)["Model"] == shown


def test_settings_are_json_for_everyone() -> None:
    text = recording.to_json({"prompt": "\u65e5\udcff\n", "scale": 7.5})
    assert text.isascii()
    assert json.loads(text) == {"prompt": "\u65e5\udcff\n", "scale": 7.5}
    with pytest.raises(ValueError, match="Out of range"):
        recording.to_json({"scale": float("nan")})


class Terminal(io.StringIO):
    """What a bar takes for a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_counts_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = []
    with runtime.Progress(2) as progress:
        for _ in range(2):
            for done in (5, 10, 12):
                progress.show(done, 12)
                shown.append((progress.bar.n, progress.bar.total))
    assert shown == [(5, 24), (10, 24), (12, 24), (17, 24), (22, 24), (24, 24)]
    assert "24/24 [" in sys.stderr.getvalue()


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture) -> None:
    with runtime.Progress(1) as progress:
        progress.show(5, 5)
        progress.print("a.png")
    assert capsys.readouterr() == ("a.png\n", "")
