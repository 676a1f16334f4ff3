"""Folders as diffusers writes them: components, shards, variants, configurations."""

import json

import checkpoint_writer as writer
import numpy as np
import pickle_writer as pickles
import pytest

from sdjax.convert.containers import reading
from sdjax.convert.errors import CheckpointError

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
WEIGHTS = "diffusion_pytorch_model"


def save(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return folder


def safetensors(**arrays):
    return writer.safetensors_file(arrays, {"format": "pt"})


def pickled(**arrays):
    return writer.torch_zip(pickles.tensors(arrays))


def test_a_pipelines_tensors_bear_their_components_names(tmp_path):
    folder = save(
        tmp_path,
        {
            "model_index.json": {"_class_name": "StableDiffusionPipeline"},
            f"unet/{WEIGHTS}.safetensors": safetensors(x=A),
            "unet/config.json": {"sample_size": 64},
            "text_encoder/pytorch_model.bin": pickled(x=B),
            "scheduler/scheduler_config.json": {"beta_start": 0.00085},
            "tokenizer/vocab.json": {"a": 1},
            "optimizer.bin": b"not looked at",
            ".cache/model.safetensors": b"not looked at",
        },
    )
    with reading.read(folder) as file:
        assert file.format == "diffusers"
        assert set(file) == {"unet/x", "text_encoder/x"}
        np.testing.assert_array_equal(file["unet/x"], A)
        np.testing.assert_array_equal(file["text_encoder/x"], B)
        assert file.metadata == {"unet/format": "pt"}
        assert file.configs == {
            "model_index.json": {"_class_name": "StableDiffusionPipeline"},
            "unet/config.json": {"sample_size": 64},
            "scheduler/scheduler_config.json": {"beta_start": 0.00085},
        }


def test_a_components_folder_gives_bare_names(tmp_path):
    with reading.read(save(tmp_path, {f"{WEIGHTS}.safetensors": safetensors(x=A), "config.json": {"a": 1}})) as file:
        assert file.format == "diffusers-component"
        assert dict(file.shapes) == {"x": (2, 3)}
        assert file.configs == {"config.json": {"a": 1}}


@pytest.mark.parametrize(
    ("suffix", "index", "shard"),
    [
        ("safetensors", "{w}.safetensors.index.json", "{w}-0000{i}-of-00002.safetensors"),
        ("bin", "{w}.bin.index.json", "{w}-0000{i}-of-00002.bin"),
        ("safetensors", "{w}.safetensors.index.fp16.json", "{w}-0000{i}-of-00002.fp16.safetensors"),
        ("safetensors", "{w}.safetensors.fp16.index.json", "{w}.fp16-0000{i}-of-00002.safetensors"),
    ],
)
def test_shards_are_read_as_one(tmp_path, suffix, index, shard):
    make = safetensors if suffix == "safetensors" else pickled
    names = [shard.format(w=WEIGHTS, i=i) for i in (1, 2)]
    files = {
        index.format(w=WEIGHTS): {"metadata": {"total_size": 32}, "weight_map": {"a": names[0], "b": names[1]}},
        names[0]: make(a=A),
        names[1]: make(b=B),
    }
    with reading.read(save(tmp_path, files), variant="fp16" if "fp16" in index else None) as file:
        assert set(file) == {"a", "b"}
        np.testing.assert_array_equal(file["a"], A)
        np.testing.assert_array_equal(file["b"], B)


def test_variants_are_chosen_where_there_are_any_and_safetensors_preferred(tmp_path):
    folder = save(
        tmp_path,
        {
            f"unet/{WEIGHTS}.safetensors": safetensors(x=A),
            f"unet/{WEIGHTS}.bin": pickled(x=A + 1),
            f"unet/{WEIGHTS}.fp16.safetensors": safetensors(x=A.astype(np.float16)),
            f"vae/{WEIGHTS}.safetensors": safetensors(x=B),
        },
    )
    with reading.read(folder) as file:
        np.testing.assert_array_equal(file["unet/x"], A)
        assert file["unet/x"].dtype == np.float32
    with reading.read(folder, variant="fp16") as file:
        assert file["unet/x"].dtype == np.float16
        np.testing.assert_array_equal(file["vae/x"], B)
    with pytest.raises(CheckpointError, match=r"variant 'ema' was asked for; its variants are none .*, 'fp16'"):
        reading.read(folder, variant="ema")
    with pytest.raises(CheckpointError, match="is no variant's name"):
        reading.read(folder, variant="../x")
