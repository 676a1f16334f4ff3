"""Prepares pictures for the networks that judge them, as each measure's own code does: the numbers depend on it.

All functions take uint8 [h, w, 3] of any size and return float32 [size, size, 3]. FID has three ways of resizing, which
give different distances. None of them crops: other shapes than squares are squeezed.
"""

import numpy as np
from jaxtyping import Float, UInt8

from sdjax.nn.layers.interpolation import interpolate
from sdjax.nn.metrics.inception import SIZE
from sdjax.pictures import preprocess, resize

Picture = UInt8[np.ndarray, "h w 3"]
Prepared = Float[np.ndarray, "size size 3"]

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
DINOV2_SIZE, CMMD_SIZE = 224, 336


def inception_pytorch(picture: Picture, size: int = SIZE) -> Prepared:
    """Returns the picture as pytorch-fid (and so MLPerf) gives it to Inception, in [-1, 1].

    Bilinear without a filter, pixel i at i + 1/2. Source: pytorch-fid, inception.py, torch's interpolate.
    """
    x = picture[None].astype(np.float32) / np.float32(255)
    return 2 * interpolate(x, (size, size), method="bilinear")[0] - 1


def inception_tensorflow(picture: Picture, size: int = SIZE) -> Prepared:
    """Returns the picture as TensorFlow 1's graph of FID resizes it, as (x - 128) / 128.

    Bilinear without a filter, pixel i at i: the last rows and columns count less. So did the first FID. Source:
    ResizeBilinear with align_corners and half_pixel_centers false; torch-fidelity and StyleGAN2 do the same.
    """
    x = picture.astype(np.float32)
    for axis in (0, 1):
        side = x.shape[axis]
        places = np.arange(size, dtype=np.float32) * np.float32(side / size)
        first = np.floor(places).astype(np.int64)
        weight = (places - first).reshape(-1, *(1,) * (2 - axis))
        before, after = x.take(first, axis), x.take(np.minimum(first + 1, side - 1), axis)
        x = before + (after - before) * weight
    return (x - 128) / np.float32(128)


def inception_clean(picture: Picture, size: int = SIZE) -> Prepared:
    """Returns the picture as clean-fid resizes it, as (x - 128) / 128.

    Pillow's bicubic, which filters before it shrinks, on float32 without rounding to 8 bits. Source: Parmar et al. 2022
    (arXiv 2104.11222); clean-fid, resize.py, mode "clean".
    """
    x = np.clip(resize(picture.astype(np.float32), size, size, "bicubic"), 0, 255)
    return (x - 128) / np.float32(128)


def dinov2(picture: Picture, size: int = DINOV2_SIZE) -> Prepared:
    """Returns the picture as FD-DINOv2 takes it: squeezed by Pillow's bicubic, 8 bits, normalised as ImageNet's.

    Source: Stein et al. 2023 (arXiv 2306.04675); layer6ai-labs/dgm-eval, models/dinov2.py.
    """
    x = resize(picture, size, size, "bicubic").astype(np.float32) / np.float32(255)
    return (x - IMAGENET_MEAN) / IMAGENET_STD


def cmmd(picture: Picture, size: int = CMMD_SIZE) -> Prepared:
    """Returns the picture as CMMD takes it: the middle square, resized by Pillow's bicubic, 8 bits, as CLIP's.

    Source: google-research/cmmd, io_util.py and embedding.py.
    """
    h, w = picture.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    x = resize(picture[top : top + side, left : left + side], size, size, "bicubic")
    return _as_clip(x.astype(np.float32) / np.float32(255))


def clip(picture: Picture, size: int = 224) -> Prepared:
    """Returns the picture as CLIP takes it: the shorter side resized by Pillow's bicubic, 8 bits, the middle cut out.

    Source: openai/CLIP, clip.py; open_clip, transform.py.
    """
    return _as_clip(preprocess.openai(picture, size))


def _as_clip(x: Prepared) -> Prepared:
    return (x - preprocess.MEAN) / preprocess.STD
