"""What a training notes about its data, and the metadata that other tools show of what it made."""

import hashlib
import json

import numpy as np
import picture_sets
import pytest
import safetensors.numpy
from models_to_train import MODEL

from sdjax.configs import finetune
from sdjax.convert.containers.webui_hashes import webui_hashes
from sdjax.description import build
from sdjax.loading.training_metadata import run_metadata, training_metadata
from sdjax.train.checkpoints import settings as stored_settings
from sdjax.train.config import TrainConfig
from sdjax.train.data import statistics
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.image_folder import Folder
from sdjax.train.data.pictures import Part, Pictures
from sdjax.train.data.statistics import set_statistics


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Kohya's layout: three pictures of a dog, ten times each, and two of a sofa, in wide and square."""
    folder = tmp_path_factory.mktemp("set")
    for name, count, size in ("10_sks dog", 3, (64, 64)), ("2_sofa", 2, (128, 64)):
        (folder / name).mkdir()
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(picture_sets.encoded(i, *size))
            (folder / name / f"{i}.txt").write_text(f"Red, number {i}, red")
    return Pictures([Part(Folder(folder), repeats=2)], Buckets(((64, 64), (128, 64))))


def test_statistics_are_those_of_folders_tags_and_sizes(examples):
    found = set_statistics(examples, 4)
    assert found["folders"] == {
        "10_sks dog": {"pictures": 3, "repeats": 20}, "2_sofa": {"pictures": 2, "repeats": 4}
    }  # fmt: skip
    assert found["tags"]["10_sks dog"] == {"red": 3, "number 0": 1, "number 1": 1, "number 2": 1}
    assert found["sizes"] == [[64, 64, 60], [128, 64, 8]]
    assert found["batches"] == 60 // 4 + 8 // 4


def test_statistics_are_bounded(examples, monkeypatch):
    monkeypatch.setattr(statistics, "MOST_TAGS", 1)
    monkeypatch.setattr(statistics, "MOST_FOLDERS", 1)
    found = set_statistics(examples, 4)
    assert list(found["folders"]) == ["10_sks dog"]
    assert found["tags"] == {"10_sks dog": {"red": 3}}
    monkeypatch.setattr(statistics, "MOST_RECORDS", 4)
    assert set_statistics(examples, 4)["folders"] == {}


def described(**changes):
    config = finetune.get_config().to_dict()
    config["optim"] |= {"steps": 40, "learning_rate": 1e-4, "rates": [("^text/", 0.5)]}
    config |= {"train": ["unet", "text"]} | changes
    return stored_settings.stored(build(TrainConfig, config))


def test_metadata_say_what_was_trained_on_and_how(examples):
    statistics = {"started": 1.5, **set_statistics(examples, 4)}
    made = training_metadata(described(dtype="bfloat16"), statistics, MODEL, name="dog", step=34, finished=86400.0)
    assert all(isinstance(value, str) for value in made.values())
    assert json.loads(made["ss_dataset_dirs"])["10_sks dog"] == {"n_repeats": 20, "img_count": 3}
    assert json.loads(made["ss_tag_frequency"])["2_sofa"] == {"red": 2, "number 0": 1, "number 1": 1}
    assert json.loads(made["ss_bucket_info"])["buckets"]["1"] == {"resolution": [128, 64], "count": 8}
    expected = {
        "ss_output_name": "dog", "ss_steps": "34", "ss_epoch": "2", "ss_num_epochs": "3",
        "ss_mixed_precision": "bf16",
        "ss_num_train_images": "68", "ss_unet_lr": "0.0001", "ss_text_encoder_lr": "5e-05", "ss_v2": "False",
        "ss_base_model_version": "sd_v1_v", "ss_resolution": f"({MODEL.image_size}, {MODEL.image_size})",
        "ss_min_snr_gamma": "None", "ss_lr_scheduler": "constant", "modelspec.title": "dog",
        "modelspec.date": "1970-01-02T00:00:00", "modelspec.prediction_type": "v",
        "modelspec.architecture": "stable-diffusion-custom/lora",
    }  # fmt: skip
    assert {name: made[name] for name in expected} == expected


def test_a_parts_own_rate_is_its_rate(examples):
    config = described()
    config["optim"] |= {"part_rates": {"text": 2e-5}, "rates": [["^unet/", 0.5]]}
    made = training_metadata(config, {}, MODEL, name="a", step=3)
    assert (made["ss_unet_lr"], made["ss_text_encoder_lr"]) == ("5e-05", "2e-05")


def test_metadata_do_not_need_statistics(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(described(train=["unet"])))
    made = run_metadata(tmp_path, MODEL, name="a", step=99, kind="textual-inversion")
    assert made["ss_max_train_steps"] == "99"  # though the run was begun with 40
    assert made["modelspec.architecture"].endswith("/textual-inversion")
    assert made["ss_epoch"] == made["ss_text_encoder_lr"] == "None"
    assert "ss_tag_frequency" not in made


def test_hashes_are_those_of_the_file_that_the_library_writes():
    rng = np.random.default_rng(0)
    tensors = {
        "b.alpha": np.float32(4).reshape(()), "b": rng.normal(size=(700, 600)).astype(np.float16),
        "a": rng.normal(size=(600, 700)).astype(np.float32)[::2],
    }  # fmt: skip
    metadata = {"ss_steps": "3", "ss_output_name": 'é"\n', "modelspec.title": "x", "sshs_model_hash": "y"}
    found = webui_hashes(tensors, metadata)
    # By hand: types of 4 bytes before those of 2, by name
    body = b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in ("a", "b.alpha", "b"))
    assert found["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    training = {name: metadata[name] for name in ("ss_steps", "ss_output_name")}
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    file = safetensors.numpy.save(contiguous, training)
    assert len(file) > 0x110000
    assert found["sshs_legacy_hash"] == hashlib.sha256(file[0x100000:0x110000]).hexdigest()[:8]
