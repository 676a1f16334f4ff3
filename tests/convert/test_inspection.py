"""The reports of `inspect` on whole and incomplete checkpoints."""

import json

import numpy as np
from small_models import model, write

from sdjax import convert
from sdjax.convert.names import naming


def test_a_whole_model(tmp_path):
    config, tensors = model("v2_v")
    metadata = {"sdjax.config": json.dumps(config.to_dict()), "note": "one\ntwo\x1b[31m"}
    report = convert.inspect(write(tmp_path / "a.safetensors", tensors, metadata))
    assert report.family == "custom (by the metadata's sdjax.config)"
    assert report.prediction == "v (by the metadata's sdjax.config)"
    assert {name: part["tensors"] for name, part in report.parts.items()} == {
        "UNet": 686, "autoencoder": 248, "text encoder": 28,
        "beside": 14,  # OpenCLIP's last block (12) and its projection, and the noise table
    }  # fmt: skip
    assert report.parts["UNet"]["elements"] == sum(a.size for n, a in tensors.items() if n.startswith("model."))
    assert report.odd == []
    assert json.loads(json.dumps(report.to_dict()))["metadata"]["note"] == metadata["note"]
    assert "\x1b" not in report.text()
    assert "odd         nothing" in report.text()


def test_what_is_odd_is_listed(tmp_path):
    config, tensors = model("v1")
    tensors = dict(tensors)
    name = "model.diffusion_model.out.2.bias"
    tensors[name] = tensors[name].astype(np.float16)
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(77, dtype=np.float32)[None]
    tensors["model.diffusion_model.input_blocks.1.1.proj_in.weight"] = tensors[
        "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    ][:, :, 0, 0]
    tensors["surprise"] = np.ones(3, np.float32)
    del tensors["first_stage_model.quant_conv.bias"]
    path = write(tmp_path / "a.safetensors", tensors, {"sdjax.config": json.dumps(config.to_dict())})
    odd = "\n".join(convert.inspect(path).odd)
    for part in ("several types", "1 projections are stored as the other generation", "positions into fractions",
                 "surprise [3] is unknown", "first_stage_model.quant_conv.bias is missing"):  # fmt: skip
        assert part in odd


def test_averages_and_missing_parts(tmp_path):
    config, tensors = model("v1")
    unet = {name: array for name, array in tensors.items() if name.startswith("model.diffusion_model.")}
    both = unet | {naming.ema_name(name): array for name, array in unet.items()}
    report = convert.inspect(write(tmp_path / "a.safetensors", both, {"sdjax.config": json.dumps(config.to_dict())}))
    assert report.ema
    assert report.parts["UNet"]["tensors"] == report.parts["other UNet"]["tensors"] == 686
    assert report.odd[:2] == ["it has no autoencoder", "it has no text encoder"]


def test_what_is_no_model_is_still_described(tmp_path):
    report = convert.inspect(write(tmp_path / "a.safetensors", {"lora_unet_x.alpha": np.ones((), np.float32)}))
    assert report.family is None
    assert "LoRA" in report.odd[0]
    assert report.parts == {"unknown": {"tensors": 1, "elements": 1, "dtypes": {"float32": 1}}}
