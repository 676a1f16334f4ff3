"""Folders of pictures and of their masks."""

import os

import pytest

from sdjax.pictures import PictureError, find_mask, list_pictures


def fill(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def listed(folder):
    return [path.name for path in list_pictures(folder)]


def test_pictures_are_listed_in_natural_order_without_their_masks(tmp_path):
    fill(
        tmp_path,
        "a10.png",
        "a2.JPG",
        "A1.webp",
        "a2_mask.png",
        "A1.mask.png",
        "b.jpeg",
        "notes.txt",
        ".hidden.png",
        "png",
    )
    (tmp_path / "folder.png").mkdir()
    assert listed(tmp_path) == ["A1.webp", "a2.JPG", "a10.png", "b.jpeg"]
    assert list_pictures(str(tmp_path))[0] == tmp_path / "A1.webp"


def test_what_is_neither_file_nor_folder_is_named(tmp_path):
    fill(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(PictureError, match=r"b\.png is no file but"):
        list_pictures(tmp_path)


def test_a_mask_of_no_picture_is_a_picture(tmp_path):
    fill(tmp_path, "fancy_mask.png", "_mask.png", "x.mask.png")
    assert listed(tmp_path) == ["_mask.png", "fancy_mask.png", "x.mask.png"]


def test_masks_are_found_beside_and_in_another_folder(tmp_path):
    fill(tmp_path, "a.png", "a_mask.png", "b.jpg", "b.mask.webp", "c.png")
    masks = fill(tmp_path / "masks", "a.png", "b_mask.png", "d.png")
    assert find_mask(tmp_path / "a.png") == tmp_path / "a_mask.png"
    assert find_mask(tmp_path / "b.jpg") == tmp_path / "b.mask.webp"
    assert find_mask(tmp_path / "c.png") is None
    assert find_mask(tmp_path / "a.png", masks) == masks / "a.png"
    assert find_mask(tmp_path / "b.jpg", masks) == masks / "b_mask.png"
    assert find_mask(tmp_path / "c.png", masks) is None
    assert find_mask(tmp_path / "c.png", tmp_path) is None  # not itself


def test_two_masks_of_a_picture_are_refused(tmp_path):
    fill(tmp_path, "a.png", "a_mask.png", "a.mask.png")
    with pytest.raises(PictureError, match=r"a\.mask\.png, a_mask\.png"):
        find_mask(tmp_path / "a.png")


def test_folders_without_pictures_and_absent_ones(tmp_path):
    with pytest.raises(PictureError, match="no picture"):
        list_pictures(fill(tmp_path / "empty", "a.txt"))
    with pytest.raises(FileNotFoundError):
        list_pictures(tmp_path / "absent")
    with pytest.raises(NotADirectoryError):
        list_pictures(tmp_path / "empty" / "a.txt")


def test_links_may_not_leave_the_folder(tmp_path):
    secret = fill(tmp_path / "elsewhere", "secret.png") / "secret.png"
    folder = fill(tmp_path / "folder", "a.png")
    (folder / "b.png").symlink_to("a.png")
    assert listed(folder) == ["a.png", "b.png"]
    for target in secret, "../elsewhere/secret.png", tmp_path / "absent" / "x.png":
        (folder / "c.png").symlink_to(target)
        with pytest.raises(PictureError, match="leads out"):
            list_pictures(folder)
        (folder / "c.png").unlink()
    (folder / "a_mask.png").symlink_to(secret)
    with pytest.raises(PictureError, match="leads out"):
        find_mask(folder / "a.png")
    (folder / "a_mask.png").unlink()
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be one
    assert listed(tmp_path / "link") == ["a.png", "b.png"]
    (folder / "gone.png").symlink_to("nothing.png")
    assert listed(folder) == ["a.png", "b.png"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_odd_names_are_listed(tmp_path):
    fill(tmp_path, "\u00e9 .png", "a\nb.png", os.fsdecode(b"\xff.png"), f"{'9' * 200}.png", "\u00b2.png")
    assert len(listed(tmp_path)) == 5
