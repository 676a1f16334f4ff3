"""Exported models: the live pictures bit by bit, kept executables, and folders that are damaged or hostile."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import pytest
from jax import export
from safetensors.flax import load_file, save_file

import sdjax
from sdjax import convert
from sdjax.adapters import Difference
from sdjax.convert.adapters.write import write_adapter
from sdjax.export import layout, run
from sdjax.export.layout import ExportError
from sdjax.export.run import ExportedModel
from sdjax.export.write import write
from sdjax.scripts import export as command
from sdjax.storage import executables

import models

ONE = {"devices": jax.devices("cpu")[:1]}
CPU = jax.devices("cpu")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("exported") / "tiny"
    write(models.pipeline(), made, height=64, width=64, batch=2, platforms=["cpu"])
    return made


@pytest.fixture(scope="module")
def model(folder):
    return ExportedModel(folder, device=CPU)


@pytest.fixture
def own_key(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_data_path", lambda name: tmp_path / "data")


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 3), ("euler_ancestral", 6), ("heun", 4)])
def test_pictures_are_the_live_ones_bit_by_bit(model, sampler, steps):
    prompts = ["a cat", "a dog"]
    options = {"negative_prompt": "red", "seed": 5, "sampler": sampler, "num_steps": steps, "guidance_rescale": 0.3}
    live = sdjax.text_to_image(models.pipeline(), prompts, height=64, width=64, guidance_scale=4.0, **options, **ONE)
    np.testing.assert_array_equal(model.text_to_image(prompts, guidance_scale=4.0, **options), live)


def test_a_last_batch_is_filled_and_progress_counts_calls(model):
    seen = []
    made = model.text_to_image(["a", "b", "c"], num_steps=6, progress=lambda *counts: seen.append(counts))
    assert made.shape == (3, 64, 64, 3)
    assert seen == [(5, 12), (6, 12), (11, 12), (12, 12)]
    np.testing.assert_array_equal(model.text_to_image("c", seed=2, num_steps=6)[0], made[2])


def test_programs_are_exported_for_other_platforms_too(tmp_path):
    write(models.pipeline(), tmp_path / "all", height=64, width=64)
    description = layout.read(tmp_path / "all")
    assert len(description.programs) == len(layout.PLATFORMS) * len(layout.PROGRAMS)
    for platform in layout.PLATFORMS:
        data = layout.program_bytes(tmp_path / "all", f"{platform}/sample", description)
        exported = export.deserialize(bytearray(data))
        assert exported.platforms == (platform,)
        run.check_calls(exported.mlir_module(), platform)
    assert command.PLATFORMS == layout.PLATFORMS


def test_kept_executables_spare_the_compiler(folder, own_key, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    first = ExportedModel(copy, device=CPU, keep=True)
    again = ExportedModel(copy, device=CPU)
    assert (first.compiled_here, again.compiled_here) == (len(layout.PROGRAMS), 0)
    options = {"prompt": ["a", "b"], "num_steps": 2}
    np.testing.assert_array_equal(again.text_to_image(**options), first.text_to_image(**options))


def test_executables_from_elsewhere_are_not_read(own_key, tmp_path, monkeypatch):
    from jax.experimental import serialize_executable

    exported = export.export(jax.jit(jnp.cos))(jax.ShapeDtypeStruct((2,), np.float32))
    compiled = jax.jit(exported.call).lower(jax.ShapeDtypeStruct((2,), np.float32)).compile()
    path = tmp_path / "cos"
    load = functools.partial(executables.load, path, device=CPU, in_tree=exported.in_tree, out_tree=exported.out_tree)
    assert load(program="a") is None
    executables.save(path, compiled, "a", CPU)
    np.testing.assert_allclose(load(program="a")(np.zeros(2, np.float32)), [1, 1])
    assert (tmp_path / "data" / executables.KEY_FILE).stat().st_mode & 0o77 == 0 or sys.platform == "win32"

    def refuse(*args, **options):
        raise AssertionError("it was read")

    monkeypatch.setattr(serialize_executable, "deserialize_and_load", refuse)
    assert load(program="b") is None  # another program
    data = bytearray(path.read_bytes())
    for place in (0, executables.CODE_BYTES, len(data) - 1):  # of the code, of the executable
        changed = data.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert load(program="a") is None
    path.write_bytes(data)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert load(program="a") is None  # compiled otherwise
    monkeypatch.delenv("XLA_FLAGS")
    (tmp_path / "data" / executables.KEY_FILE).write_bytes(bytes(executables.KEY_BYTES))  # another computer's key
    assert load(program="a") is None
    path.write_bytes(b"")
    assert load(program="a") is None


def broken(folder: Path, **changes) -> None:
    found = json.loads((folder / layout.MANIFEST).read_text())
    (folder / layout.MANIFEST).write_text(json.dumps({**found, **changes}))


def without_program(folder: Path, name: str) -> None:
    programs = json.loads((folder / layout.MANIFEST).read_text())["programs"]
    del programs[name]
    broken(folder, programs=programs)


def without_a_weight(folder: Path) -> None:
    path = folder / layout.WEIGHTS
    weights = load_file(path)
    del weights[next(name for name in sorted(weights) if name.startswith("text/"))]
    save_file(weights, path)
    broken(folder, weight_bytes=path.stat().st_size)


DAMAGES = [
    (lambda at: (at / layout.MANIFEST).unlink(), "is no exported model: it has no exported.json"),
    (lambda at: (at / layout.MANIFEST).write_text("{"), "exported.json cannot be used"),
    (lambda at: (at / layout.MANIFEST).write_text("[" * 10**5), "exported.json cannot be used"),
    (lambda at: (at / layout.MANIFEST).write_text("[]"), "it is no JSON object"),
    (lambda at: broken(at, format=2), "its format is not 1; export the model again"),
    (lambda at: broken(at, more=1), "it has not the entries"),
    (lambda at: broken(at, batch="2"), "batch is wrong"),
    (lambda at: broken(at, height=2**30), "height is out of range"),
    (lambda at: broken(at, programs={"../x": [1, "0" * 64]}), "there is no program"),
    (lambda at: broken(at, programs={"cpu/text": [2**40, "0" * 64]}), "size or SHA-256 of the program cpu/text is"),
    (lambda at: broken(at, schedule={"kind": "odd"}), "exported.json cannot be used"),
    (lambda at: broken(at, programs=[]), "programs is wrong"),
    (lambda at: broken(at, programs={"cpu/text": [float("inf"), "0" * 64]}), "exported.json cannot be used"),
    (lambda at: broken(at, versions=[]), "versions is wrong"),
    (lambda at: broken(at, pad=10**30), "pad is out of range"),
    (lambda at: broken(at, guidance_scale=float("nan")), "guidance_scale is not a finite number"),
    (lambda at: broken(at, schedule={"num_timesteps": 10**9}), "num_timesteps is out of range"),
    (lambda at: broken(at, height=128), "do not fit each other or their description"),
    (lambda at: broken(at, batch=3), "the program text does not fit"),
    (lambda at: without_program(at, "cpu/text"), "has no program cpu/text"),
    (lambda at: without_a_weight(at), "the program text does not fit the weights"),
    (lambda at: (at / layout.TOKENIZER).mkdir(), "has no readable tokenizer"),
    (lambda at: (at / layout.WEIGHTS).write_bytes(b"short"), "weights .* are missing or damaged"),
    (lambda at: (at / layout.program_file("cpu/noise")).unlink(), "program .* is missing or damaged"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_a_damaged_folder_is_refused_with_a_sentence(folder, tmp_path, damage, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ExportError, match=message):
        ExportedModel(copy, device=CPU)


def test_a_program_that_calls_back_is_refused():
    calling = jax.jit(lambda x: jax.pure_callback(np.cos, x, x)).lower(jax.ShapeDtypeStruct((2,), np.float32))
    with pytest.raises(ExportError, match="the program text calls .*callback.*, which programs may not call"):
        run.check_calls(calling.as_text(), "text")
    run.check_calls(jax.jit(jnp.cos).lower(1.0).as_text(), "text")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dpm_solver_adaptive"}, "this one has another rule"),
        ({"sampler": "none"}, "unknown sampler 'none'"),
        ({"num_steps": 0}, "num_steps is a whole number from 1 up"),
        ({"guidance_scale": float("nan")}, "guidance_scale is a finite number"),
        ({"prompt": []}, "at least one prompt is needed, got none"),
        ({"seed": -1}, "a seed lies between 0 and"),
    ],
)
def test_wrong_arguments_are_one_sentence(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.text_to_image(**{"prompt": "a", **options})


def test_a_folder_for_another_platform_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    found = json.loads((copy / layout.MANIFEST).read_text())
    broken(copy, programs={name.replace("cpu", "tpu"): value for name, value in found["programs"].items()})
    with pytest.raises(ExportError, match="was exported for tpu, not for cpu"):
        ExportedModel(copy, device=CPU)
    with pytest.raises(ValueError, match="platforms are some of cpu, cuda, tpu; got"):
        write(models.pipeline(), tmp_path / "x", height=64, width=64, platforms=["metal"])
    with pytest.raises(FileExistsError, match="choose another folder"):
        write(models.pipeline(), copy, height=64, width=64, platforms=["cpu"])


def test_adapters_are_merged_into_the_exported_weights_and_words_are_refused(tmp_path, monkeypatch):
    """The numbers of --lora are in what is written."""
    path, file = "unet/conv_out/bias", tmp_path / "one.safetensors"
    convert.save(models.TINY, jax.tree.map(np.asarray, models.pipeline().params), tmp_path / "m.safetensors")
    write_adapter(file, {path: Difference(np.ones(models.TINY.unet.out_channels, "f"))}, models.TINY)
    written: list = []
    monkeypatch.setattr("sdjax.export.write.write", lambda pipe, *args, **options: written.append(pipe) or sys.exit(0))
    with pytest.raises(SystemExit):
        command.run(command.make_parser().parse_args(
            [str(tmp_path / "m.safetensors"), str(tmp_path / "out"), "--lora", f"{file}:0.5"]
        ))  # fmt: skip
    want = np.asarray(models.pipeline().params["unet"]["conv_out"]["bias"]) + 0.5
    np.testing.assert_allclose(written[0].params["unet"]["conv_out"]["bias"], want, rtol=1e-6)
    with_word = models.pipeline().with_embeddings({"<cat>": np.ones((1, models.TINY.text.width), "f")})
    with pytest.raises(ValueError, match="cannot hold words .* the model has <cat>"):
        write(with_word, tmp_path / "out", height=64, width=64, platforms=["cpu"])


@pytest.mark.slow
def test_the_built_in_model_is_exported_and_run_without_networks(tmp_path):
    """The two commands, each in a process of its own; the second one must not import a network."""
    folder, out = tmp_path / "builtin", tmp_path / "out"
    export_it = [sys.executable, "-m", "sdjax", "export", "builtin", str(folder), "--platform", "cpu"]
    subprocess.run(export_it, check=True, capture_output=True, timeout=600)
    code = (
        "import sys; from sdjax.scripts.main import main; status = main(sys.argv[1:]); "
        "assert not [m for m in sys.modules if m.startswith(('sdjax.nn', 'sdjax.convert', 'sdjax.tasks'))]; "
        "sys.exit(status)"
    )
    arguments = ["run-exported", str(folder), "--prompt", "a cat on a blue background", "--steps", "10",
                 "--outdir", str(out), "--device", "cpu"]  # fmt: skip
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=600)
    live = sdjax.text_to_image(sdjax.load(), "a cat on a blue background", seed=42, num_steps=10, **ONE)[0]
    from sdjax import pictures

    np.testing.assert_array_equal(pictures.open_picture(next(out.glob("*.png"))).pixels, live)
