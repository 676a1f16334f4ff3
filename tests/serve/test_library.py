"""The library of model files: both tools' folders, names, hashes, and what a name may not reach."""

import hashlib
import time

import pytest

from sdjax.serve.engine import Work
from sdjax.serve.engine.options import read
from sdjax.serve.library import KINDS, Library, UnknownFile
from sdjax.tasks.adapter_files import find_file


def put(path, content=b"weights"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def roots(tmp_path):
    web, comfy = tmp_path / "webui", tmp_path / "ComfyUI"
    put(web / "models/Stable-diffusion/sd/v1-5.safetensors")
    put(web / "models/Stable-diffusion/sd/v1-5.vae.pt")
    put(web / "models/Stable-diffusion/notes.txt")
    put(web / "models/Lora/film.safetensors", b"a film")
    put(web / "embeddings/easy.pt")
    put(comfy / "models/checkpoints/v2-1.ckpt")
    put(comfy / "models/checkpoints/folder/model_index.json")
    put(comfy / "models/checkpoints/folder/unet/model.safetensors")
    put(comfy / "models/loras/anime/film.safetensors")
    put(comfy / "models/controlnet/canny.pth")
    return [web, comfy]


def names(library, kind):
    return [entry.name for entry in library.entries(kind)]


def test_both_layouts_are_found(roots):
    library = Library(roots)
    builtin = ["builtin", "builtin-inpainting"]
    assert names(library, "checkpoint") == [*builtin, "folder", "sd/v1-5.safetensors", "v2-1.ckpt"]
    assert names(library, "lora") == ["anime/film.safetensors", "film.safetensors"]
    assert names(library, "embedding") == ["easy.pt"]
    assert names(library, "control") == ["canny.pth"]
    assert all(
        library.entries(kind) == []
        for kind in KINDS
        if kind not in ("checkpoint", "lora", "embedding", "control", "ip_adapter")
    )


@pytest.mark.parametrize("spelled", ["sd/v1-5.safetensors", "sd/v1-5", "v1-5", "V1-5", r"sd\v1-5.safetensors"])
def test_names_that_mean_one_file(roots, spelled):
    assert Library(roots).find("checkpoint", spelled).name == "sd/v1-5.safetensors"


def test_a_name_with_dots_keeps_them(tmp_path):
    put(tmp_path / "loras/v1.5.safetensors")
    put(tmp_path / "loras/v1.6.safetensors")
    assert Library([tmp_path]).find("lora", "v1.5").name == "v1.5.safetensors"


def test_the_whole_name_comes_first(roots):
    assert Library(roots).find("lora", "film").name == "film.safetensors"
    assert Library(roots).find("lora", "anime/film").name == "anime/film.safetensors"


def test_a_name_of_two_files_is_refused(tmp_path):
    put(tmp_path / "loras/a/film.safetensors")
    put(tmp_path / "loras/b/film.safetensors")
    with pytest.raises(UnknownFile, match="'film' may be 'a/film.safetensors', 'b/film.safetensors'"):
        Library([tmp_path]).find("lora", "film")


@pytest.mark.parametrize("name", ["../webui/models/Lora/film.safetensors", "/etc/passwd", "", "flim", "fi*", "a\0b"])
def test_no_other_name_reaches_a_file(roots, name):
    with pytest.raises(UnknownFile):
        Library(roots).find("lora", name)


def test_the_nearest_name_is_told(roots):
    with pytest.raises(UnknownFile, match="did you mean 'film'"):
        Library(roots).find("lora", "flim")


def test_hashes_are_those_of_the_files_and_are_kept(roots, tmp_path):
    state = tmp_path / "state"
    library = Library(roots, state=state)
    film = library.find("lora", "film")
    digits = hashlib.sha256(b"a film").hexdigest()
    assert library.title(film) == "film.safetensors"
    assert library.sha256(film) == digits
    again = Library(roots, state=state)
    title = again.title(again.find("lora", "film"))
    assert title == f"film.safetensors [{digits[:10]}]"
    assert again.find("lora", title) == again.find("lora", digits[:10]) == film
    put(film.path, b"another film")  # another size
    changed = Library(roots, state=state)
    assert changed.title(changed.find("lora", "film.safetensors")) == "film.safetensors"


def test_files_are_hashed_in_the_background_and_again_after_a_refresh(roots, tmp_path):
    library = Library(roots, state=put(tmp_path / "state/x").parent)
    library.start_hashing()
    put(roots[0] / "models/Lora/new.safetensors", b"new")
    library.refresh()
    for _ in range(500):
        if all(library.short_hash(one) for one in library.entries("lora")):
            break
        time.sleep(0.01)
    assert library.short_hash(library.find("lora", "new")) == hashlib.sha256(b"new").hexdigest()[:10]
    assert library.find("lora", hashlib.sha256(b"a film").hexdigest()[:10]).stem == "film"


def test_tags_find_files_in_every_folder_of_a_kind(tmp_path):
    roots = [put(tmp_path / root / f"models/Lora/{root}.safetensors").parents[2] for root in ("one", "two")]
    folders = read(Work("txt2img", {}), Library(roots), ()).of_files["lora_dir"]
    for root in "one", "two":
        assert find_file(folders, root) == tmp_path / root / f"models/Lora/{root}.safetensors"
    with pytest.raises(ValueError, match="no adapter of the name 'three'"):
        find_file(folders, "three")


@pytest.mark.parametrize("damaged", [b"", b"[1]", b"\xff", b'{"a": 1}'])
def test_damaged_hashes_are_made_again(roots, tmp_path, damaged):
    put(tmp_path / "state/hashes.json", damaged)
    library = Library(roots, state=tmp_path / "state")
    assert library.sha256(library.find("lora", "film")) == hashlib.sha256(b"a film").hexdigest()


def test_new_files_are_seen_after_refresh(roots):
    library = Library(roots)
    assert "new.safetensors" not in names(library, "lora")
    put(roots[0] / "models/Lora/new.safetensors")
    assert "new.safetensors" not in names(library, "lora")
    library.refresh()
    assert "new.safetensors" in names(library, "lora")


def test_a_model_of_its_own(tmp_path):
    own = put(tmp_path / "elsewhere/mine.safetensors")
    library = Library(checkpoint=str(own))
    assert library.find("checkpoint", "mine").path == own
    assert Library(checkpoint="stabilityai/stable-diffusion-2-1").find(
        "checkpoint", "stabilityai/stable-diffusion-2-1"
    ).size == 0  # fmt: skip


def test_a_root_must_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        Library([tmp_path / "nothing"])


def test_styles_are_those_beside_the_models(tmp_path):
    assert Library([tmp_path]).styles() == {}
    with pytest.raises(ValueError, match="no style 'film'; the server has no styles"):
        read(Work("txt2img", {"styles": ["film"]}), Library([tmp_path]), ())
    table = tmp_path / "styles.csv"
    table.write_text("name,prompt,negative_prompt\nfilm,{prompt} on film,digital\n", encoding="utf-8")
    library = Library([tmp_path])
    assert library.styles()["film"] == ("{prompt} on film", "digital")
    options = read(Work("txt2img", {"styles": ["film"]}), library, ())
    assert options.of_files["styles_file"] == str(table)
    with pytest.raises(ValueError, match="no style 'ink'; the server has film"):
        read(Work("txt2img", {"styles": ["ink"]}), library, ())
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"^styles.csv beside the models is no table"):
        library.styles()
