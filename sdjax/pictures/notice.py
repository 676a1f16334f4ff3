"""The notice that replaces a picture withheld by the safety checker."""

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

TEXT = "Withheld by\nthe safety checker"
GREY, INK = (128, 128, 128), (255, 255, 255)


def notice(height: int, width: int) -> np.ndarray:
    """Returns a grey picture, uint8 [height, width, 3], with TEXT in white letters about a tenth of its width."""
    picture = PillowImage.new("RGB", (width, height), GREY)
    draw = ImageDraw.Draw(picture)
    size = max(min(width / 10, height / 4), 4)
    font = ImageFont.load_default(size)
    draw.multiline_text((width / 2, height / 2), TEXT, fill=INK, font=font, anchor="mm", align="center")
    return np.array(picture)
