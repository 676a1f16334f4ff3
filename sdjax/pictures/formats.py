"""Reads samples from PNG, JPEG and WebP files that are not trusted.

The first bytes decide the format. We parse the structure ourselves and check limits before decoding. Pillow's decoders
get a new stream with only the parts that hold pixels; text, comments, thumbnails and further frames never reach them.
Damage that the decoders would silently ignore (missing rows, truncated scans) is refused.
"""

from sdjax.pictures import jpeg, png, webp
from sdjax.pictures.samples import MAX_BYTES, PictureError, Samples

OTHERS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"PK\3\4": "a ZIP archive",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\x76\x2f\x31\x01": "an OpenEXR file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<": "markup (SVG, XML or HTML)",
}


def read(data: bytes) -> Samples:
    """Returns the samples of a file's bytes. Raises PictureError, and no other error, if anything is wrong."""
    try:
        if len(data) > MAX_BYTES:
            raise PictureError(f"the file has {len(data)} bytes, and at most {MAX_BYTES} are read")
        if not data:
            raise PictureError("the file is empty")
        if data.startswith(png.MAGIC):
            return png.read(data)
        if data.startswith(b"\xff\xd8\xff"):
            return jpeg.read(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return webp.read(data)
        raise PictureError(f"PNG, JPEG and WebP files are read, and this is {_guess(data)}")
    except PictureError:
        raise
    except Exception as error:  # the decoders raise all sorts, MemoryError among them
        raise PictureError(f"the file is damaged ({error or type(error).__name__})") from error


def _guess(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "an AVIF" if brand[:3] == b"avi" else "a HEIC" if brand[:2] in (b"he", b"mi") else "a video"
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for magic, name in OTHERS.items() if start.startswith(magic)), "something else")
