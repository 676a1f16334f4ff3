"""A model's place as people type and paste it, and what a path on this computer means."""

import os
from pathlib import Path

import pytest
import safetensors.numpy

from sdjax import convert
from sdjax.convert.containers.places import read_place
from sdjax.convert.errors import CheckpointError
from sdjax.loading import hub

import models

HUB = "https://huggingface.co"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Puts the test into a folder of its own, with a home inside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELS", str(tmp_path / "models"))
    (tmp_path / "home").mkdir()
    (tmp_path / "models").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "repository", "revision", "file"),
    [
        (f"{HUB}/o/n", "o/n", None, None),
        (f"{HUB}/o/n/", "o/n", None, None),
        (f"{HUB}/o/n/tree/main", "o/n", "main", None),
        (f"{HUB}/o/n/tree/v1.0/vae", "o/n", "v1.0", "vae"),
        (f"{HUB}/o/n/tree/refs%2Fpr%2F5", "o/n", "refs/pr/5", None),
        (f"{HUB}/o/n/tree/refs/pr/5/vae", "o/n", "refs/pr/5", "vae"),
        (f"{HUB}/o/n/blob/main/x.safetensors", "o/n", "main", "x.safetensors"),
        (f"{HUB}/o/n/blob/main/a%20b.ckpt#L1", "o/n", "main", "a b.ckpt"),
        (f"{HUB}/o/n/resolve/main/x.safetensors?download=true", "o/n", "main", "x.safetensors"),
        (f"{HUB}/o/n/tree/main?show_file_info=unet%2Fx.safetensors", "o/n", "main", "unet/x.safetensors"),
        (f"{HUB}/o/n/commit/{COMMIT}", "o/n", COMMIT, None),
        (f"{HUB}/o/n/discussions/3", "o/n", None, None),
        (f"{HUB}/o/n?library=diffusers", "o/n", None, None),
        ("http://hf.co/o/n", "o/n", None, None),
        ("HTTPS://HuggingFace.co/o/n", "o/n", None, None),
        ("hf.co/o/n/tree/main/", "o/n", "main", None),
        ("www.huggingface.co/o/n", "o/n", None, None),
        ("git@hf.co:o/n", "o/n", None, None),
        ("https://someone:secret@huggingface.co/o/n.git", "o/n", None, None),
        ("hf://o/n", "o/n", None, None),
        ("hf://models/o/n@v2/x.ckpt", "o/n", "v2", "x.ckpt"),
        ("o/n/", "o/n", None, None),
        ("o/n@v1.0", "o/n", "v1.0", None),
        ("o/n@refs/pr/3/x.ckpt", "o/n", "refs/pr/3", "x.ckpt"),
        (" 'o/n'\n", "o/n", None, None),
        (f"\u201c{HUB}/o/n\u201d", "o/n", None, None),
        (f"<{HUB}/o/n>", "o/n", None, None),
        (f"({HUB}/o/n).", "o/n", None, None),
    ],
)
def test_addresses_and_names_of_the_hub(text: str, repository: str, revision: str, file: str, here) -> None:
    place = read_place(text)
    assert (place.path, place.repository, place.revision, place.file) == (None, repository, revision, file)
    assert not hub.is_local(text)


def test_the_hosts_of_a_hub_of_ones_own_are_the_hubs_too(here, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1234")
    assert read_place("http://127.0.0.1:1234/o/n").repository == "o/n"
    with pytest.raises(CheckpointError, match=r"not from 127\.0\.0\.1"):
        read_place("http://127.0.0.1:99/o/n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("https://civitai.com/models/4384?modelVersionId=128713", "civitai.com: download the file there in a browser"),
        ("civitai.com/api/download/models/128713", "civitai.com: download the file there"),
        ("urn:air:sd1:checkpoint:civitai:4384@128713", "civitai.com: download the file there"),
        ("https://github.com/CompVis/stable-diffusion", "not from github.com: download"),
        ("https://evil.example/o/n", "from the Hugging Face hub alone, not from evil.example"),
        ("https://huggingface.co.evil.example/o/n", "not from huggingface.co.evil.example"),
        ("https://huggingface.co@evil.example/o/n", "not from evil.example"),
        ("https://someone:secret@evil.example/o/n", "not from evil.example"),
        ("https://cdn-lfs.huggingface.co/repos/x?Signature=secret", "name the repository, owner/name"),
        (f"{HUB}/datasets/o/n", "datasets, and no model"),
        (f"{HUB}/spaces/o/n", "spaces, and no model"),
        (f"{HUB}/o", "names no model"),
        (f"{HUB}/../n", "no name of a repository"),
        (f"{HUB}/o/n/tree/..%2F..%2Fx", "no name of a repository"),
        ("file://elsewhere/x.ckpt", "names another"),
        ("", "a path or a name"),
        ("  ", "a path or a name"),
    ],
)
def test_other_addresses_are_explained(text: str, sentence: str, here) -> None:
    with pytest.raises(CheckpointError) as error:
        read_place(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_paths_are_found_however_they_are_written(here) -> None:
    for name in ("home/x.ckpt", "models/a b.ckpt", "models/x.ckpt"):
        (here / name).write_bytes(b"x")
    home, spaced, plain = here / "home/x.ckpt", here / "models/a b.ckpt", here / "models/x.ckpt"
    written = {
        home: ["~/x.ckpt", "$HOME/x.ckpt", "${HOME}/x.ckpt", "%USERPROFILE%\\x.ckpt", "~\\x.ckpt", Path("~/x.ckpt"),
               f"file://{home}", f"file://localhost{home}", str(home).encode()],
        spaced: ["models/a b.ckpt ", "'models/a b.ckpt'", '"models\\a b.ckpt"', "models/a\\ b.ckpt",
                 f"file://{here}/models/a%20b.ckpt", "$MODELS/a b.ckpt"],
        plain: ["models/x.ckpt", ".\\models\\x.ckpt", "models/x.ckpt/", "./models//x.ckpt", "\tmodels/x.ckpt\n",
                "home/../models/x.ckpt"],
    }  # fmt: skip
    for path, texts in written.items():
        for text in texts:
            assert os.path.samefile(hub.resolve(text), path), text


def test_what_is_here_goes_before_the_hub_unless_the_address_says_hub(here) -> None:
    (here / "o/n").mkdir(parents=True)
    said = []
    assert hub.resolve("o/n", say=said.append) == Path("o/n")
    assert "hf://o/n" in said[0]  # the folder is empty: perhaps it was not meant
    assert read_place("hf://o/n").repository == read_place(f"{HUB}/o/n").repository == "o/n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models/modle.ckpt", "did you mean 'model.ckpt'?"),
        ("models/MODEL.ckpt", "did you mean 'model.ckpt'?"),
        ("models/model", "did you mean 'model.ckpt'?"),
        ("modles/model.ckpt", "modles is not there; did you mean 'models'?"),
        ("~/nothing", "home/nothing: there is no such file"),
        ("C:\\Users\\me\\model.ckpt", "a path of Windows"),
        ("\\\\server\\share\\model.ckpt", "a path of Windows"),
        ("stable-diffusion", "no hub repository's owner/name"),
    ],
)
def test_a_missing_path_is_answered_with_the_nearest(text: str, sentence: str, here) -> None:
    (here / "models/model.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError) as error:
        hub.resolve(text)
    assert sentence in str(error.value)
    assert "no such file" in str(error.value)


def test_the_only_checkpoint_of_a_folder_is_taken_and_said(here) -> None:
    folder = here / "models"
    (folder / "notes.txt").write_text("")
    (folder / "optimizer.bin").write_bytes(b"x")
    assert hub.resolve("models") == Path("models")
    (folder / "deep").mkdir()
    (folder / "deep/x.ckpt").write_bytes(b"x")
    said: list[str] = []
    assert hub.resolve("models", say=said.append) == Path("models/deep/x.ckpt")
    (folder / "a.ckpt").write_bytes(b"x")
    (folder / "b.pt").write_bytes(b"x")
    assert hub.resolve("models/", say=said.append) == Path("models/a.ckpt")
    assert ["one model" in text for text in said] == [True, True]
    (folder / "c.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"which one\? This folder holds a.ckpt, c.ckpt"):
        hub.resolve("models")


@pytest.fixture
def cached(here) -> Path:
    """Returns the folder of a repository in the hub's cache, its one file a link as the hub's library makes it."""
    root = here / "hub/models--someone--thing"
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (root / folder).mkdir(parents=True)
    (root / "blobs/ab12").write_bytes(safetensors.numpy.save({"x": models.picture()}))
    (root / "refs/main").write_text(COMMIT)
    (root / f"snapshots/{COMMIT}/model.safetensors").symlink_to("../../blobs/ab12")
    return root


def test_paths_into_the_hubs_cache_lead_to_its_snapshot(cached) -> None:
    snapshot = cached / "snapshots" / COMMIT
    for inside in ("", "snapshots", "refs/main", "refs", f"snapshots/{COMMIT}"):
        assert hub.resolve(cached / inside) == snapshot, inside
    assert hub.resolve(cached, revision=COMMIT) == snapshot
    assert hub.resolve(cached.parent) == snapshot
    (cached.parent / "models--another--one").mkdir()
    with pytest.raises(CheckpointError, match="name one of its repositories, another/one, someone/thing"):
        hub.resolve(cached.parent)
    assert hub.resolve(cached / "blobs/ab12") == cached / "blobs/ab12"
    with pytest.raises(CheckpointError, match=r"without their names.*snapshots"):
        hub.resolve(cached / "blobs")
    other = cached / "snapshots" / COMMIT[::-1]
    other.mkdir()
    (cached / "refs/main").unlink()
    with pytest.raises(CheckpointError, match="several revisions"):
        hub.resolve(cached)


def test_a_cache_whose_files_are_gone_is_explained_with_the_name_to_fetch_again(cached) -> None:
    (cached / "blobs/ab12").unlink()
    for path in (cached, cached / "snapshots" / COMMIT, cached / "snapshots" / COMMIT / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"a link to .* which is gone; fetch it again by .* someone/thing"):
            convert.read(path)
    (cached / "snapshots" / COMMIT / "model.safetensors").unlink()
    for path in (cached, cached / "snapshots" / COMMIT):
        with pytest.raises(CheckpointError, match="no longer holds .* fetch them again by the name someone/thing"):
            convert.read(path)


def test_a_clone_whose_large_files_are_pointers_is_explained(here) -> None:
    folder = here / "models/clone"
    folder.mkdir()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167536\n"
    (folder / "model.safetensors").write_bytes(pointer)
    with pytest.raises(CheckpointError, match="Git LFS pointer.*git lfs pull"):
        convert.read(folder)


def halves(folder: Path, plain: tuple[str, ...] = ()) -> Path:
    """Writes a diffusers folder whose weights are named fp16, but for those of `plain` parts."""
    pipe = models.pipeline()
    convert.save(pipe.config, pipe.params, folder, to="diffusers", tokenizer=pipe.tokenizer)
    for file in folder.glob("*/*.safetensors"):
        if file.parent.name not in plain:
            file.rename(file.with_suffix(".fp16.safetensors"))
    return folder


def test_a_folder_with_fp16_files_alone_is_taken_and_said(here) -> None:
    model = convert.load_model(halves(here / "half"))
    (notice,) = [text for text in model.report.notices if "variant" in text]
    assert notice == "there are no plain weights of text_encoder, unet, vae, so those of the variant fp16 were taken"
    assert model.leaves["unet/conv_in/kernel"].read().any()
    mixed = convert.load_model(halves(here / "mixed", plain=("vae",)))
    assert any("of text_encoder, unet, so those of the variant fp16" in text for text in mixed.report.notices)
    asked = convert.load_model(here / "half", variant="fp16")
    assert not [text for text in asked.report.notices if "variant" in text]
    with pytest.raises(CheckpointError, match="variant 'fp8' was asked for"):
        convert.load_model(here / "half", variant="fp8")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/stable-diffusion/v1-inference.yaml", "sd1"),
        ("v1-inference.yaml", "sd1"),
        ("configs\\stable-diffusion\\v1-inference.yml", "sd1"),
        ("configs/stable-diffusion/v1-inpainting-inference.yaml", "sd1_inpaint"),
        ("configs/stable-diffusion/v2-inference.yaml", "sd2_base"),
        ("configs/stable-diffusion/intel/v2-inference-bf16.yaml", "sd2_base"),
        ("configs/stable-diffusion/v2-inference-v.yaml", "sd2_v"),
        ("configs/stable-diffusion/intel/v2-inference-v-fp32.yaml", "sd2_v"),
        ("configs/stable-diffusion/v2-inpainting-inference.yaml", "sd2_inpaint"),
        ("configs/stable-diffusion/v2-midas-inference.yaml", "sd2_depth"),
        ("configs/stable-diffusion/x4-upscaling.yaml", "x4_upscaler"),
        ("configs/stable-diffusion/v2-1-stable-unclip-h-inference.yaml", "sd2_unclip_h"),
        ("configs/stable-diffusion/v2-1-stable-unclip-l-inference.yaml", "sd2_unclip_l"),
        ("configs/latent-diffusion/txt2img-1p4B-eval.yaml", "laion400m"),
        ("https://raw.githubusercontent.com/x/y/main/configs/v2-inference-v.yaml?raw=true", "sd2_v"),
        ("configs/stable-diffusion/mine.yaml", None),
        ("sd1", None),
        (None, None),
    ],
)
def test_the_yaml_files_of_the_old_commands_stand_for_what_they_described(path: str, name: str, here) -> None:
    from sdjax.convert.describe import ldm_config

    assert ldm_config.stand_in(path) == name


def test_a_yaml_file_that_is_there_is_read_and_an_unknown_one_refused(here) -> None:
    from sdjax.convert.describe import ldm_config

    (here / "v1-inference.yaml").write_text("model: {}")
    assert ldm_config.stand_in("v1-inference.yaml") is None
    with pytest.raises(CheckpointError, match=r"no such file; .* ldm YAML file or one of sd1, .*laion400m"):
        ldm_config.read_ldm_yaml("configs/mine.yaml")
