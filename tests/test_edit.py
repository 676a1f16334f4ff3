"""Editing by instructions: models whose network takes the latent of a picture."""

import dataclasses

import numpy as np
import pytest

import sdjax
from sdjax import configs
from sdjax.convert.describe.detection import detect
from sdjax.convert.names.tables import tensor_shapes
from sdjax.purpose import kind_of
from sdjax.tasks.edit import with_image_scale

import models

EDIT = dataclasses.replace(models.TINY, name="edit", unet=dataclasses.replace(models.TINY.unet, in_channels=8))
FEW = {"num_steps": 2, "sampler": "euler"}


def test_a_checkpoint_is_known_by_its_eight_channels():
    base = configs.get("sd1")
    wide = dataclasses.replace(base, unet=dataclasses.replace(base.unet, in_channels=8))
    found = detect(tensor_shapes(wide, "ldm"))
    assert (found.name, found.unet) == ("sd1_edit", wide.unet)
    assert kind_of(found) == "edit"


@pytest.mark.slow  # compiles networks
def test_pictures_of_a_batch_have_their_own_scales():
    pipe, picture = models.pipeline(EDIT), models.picture()
    options = {"seed": [1, 1, 1], "guidance_scale": [2, 2, 3], **FEW}
    got = np.asarray(sdjax.edit(pipe, picture, ["winter"] * 3, image_scale=[1.5, 3, 1.5], **options))
    alone = np.asarray(sdjax.edit(pipe, picture, "winter", image_scale=3, seed=1, guidance_scale=2, **FEW))
    assert np.abs(got[1].astype(int) - alone[0]).max() <= 1
    assert (got[0] != got[1]).any()
    assert (got[0] != got[2]).any()
    other = np.asarray(
        sdjax.edit(pipe, models.picture(seed=3), "winter", image_scale=3, seed=1, guidance_scale=2, **FEW)
    )
    assert (other != alone).any()  # the network sees the picture


def test_what_cannot_edit_is_refused():
    with pytest.raises(ValueError, match=r"edit needs a model that takes 8 channels"):
        sdjax.edit(models.pipeline(), models.picture(), "winter")
    with pytest.raises(ValueError, match="it is one for editing by instructions"):
        sdjax.text_to_image(models.pipeline(EDIT), "winter")
    with pytest.raises(ValueError, match="image_scale is the scale of the rule edit"):
        with_image_scale(sdjax.Request(guidance="edit"), 2)
    assert with_image_scale(sdjax.Request(), 1).guidance is None
