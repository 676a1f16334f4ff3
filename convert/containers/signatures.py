"""Recognises files that are not checkpoints at all, by their first bytes and their names' endings."""

import pathlib
import re

from sdjax.convert.errors import FileKind

_CONVERTED = "name the .safetensors or .ckpt that it was made of"
_AGAIN = "download the model itself again, and look whether the address needs you to log in"
_EXTENSIONS = {
    ".engine": "a TensorRT engine", ".trt": "a TensorRT engine", ".plan": "a TensorRT engine",
    ".onnx": "an ONNX model", ".mlmodel": "a Core ML model", ".msgpack": "Flax weights of diffusers (msgpack)",
    ".h5": "Keras or TensorFlow weights (HDF5)", ".tflite": "a TensorFlow Lite model",
    ".pdparams": "PaddlePaddle weights", ".xml": "an OpenVINO model's description",
}  # fmt: skip
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (rb"FUGG|ggml|tjgg", "a file of ggml's in an old format, or for another processor", _CONVERTED),
    (rb"ftrt|trtf|ptrt", "a TensorRT engine", _CONVERTED),
    (rb"\x08[\x01-\x14](\x12.(pytorch|onnx|tf2onnx|keras|Olive|ORT|mxnet|paddle|skl2onnx|diffusers|optimum|ir-py)"
     rb"|\x12\x00|\x12[\x01-\x30][\x20-\x7e]{3}|\x1a|\x22|\x2a|\x3a)", "an ONNX model", _CONVERTED),
    (rb"\x08[\x01-\x14]\x12[\x00-\x7f][\x0a\x22\x12]", "a Core ML model", _CONVERTED),
    (rb"\x89HDF\r\n\x1a\n", "Keras or TensorFlow weights (HDF5)", _CONVERTED),
    (rb".{4}TFL3", "a TensorFlow Lite model", _CONVERTED),
    (rb"\x93NUMPY", "an array of numpy (.npy)", "name a checkpoint"),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftyp(avif|heic|mif1)",
     "a picture", "name a checkpoint; a picture is given by another flag or argument, as --init-img"),
    (rb"%PDF-|.{4}ftyp|RIFF|OggS|ID3", "a document, video or sound", "name a checkpoint"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd",
     "a packed archive (its first bytes are none of theirs)", "unpack it and name the file in it"),
    (rb"\x7fELF|MZ|#!", "a program (its first bytes are none of theirs)", "name a checkpoint"),
)  # fmt: skip


def kind_of_bytes(head: bytes, path: pathlib.Path) -> FileKind | None:
    """Returns the kind of a file with this beginning, if it is known and not a checkpoint."""
    for pattern, what, advice in _SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return FileKind(what, advice)
    if head.startswith(b"version https://"[:16]):
        return FileKind("a Git LFS pointer (the few lines that stand for a file)",
                        "run `git lfs pull` in the clone, or fetch the file itself")  # fmt: skip
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        return FileKind("text (a web page perhaps, saved instead of the file)", _AGAIN)
    if text[:1] in (b"{", b"["):
        return FileKind("text (a configuration perhaps)", "name the file or folder of the weights")
    if path.suffix.lower() in _EXTENSIONS:
        return FileKind(_EXTENSIONS[path.suffix.lower()], _CONVERTED)
    return None
