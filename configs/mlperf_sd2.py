"""MLPerf Training's benchmark of Stable Diffusion v2: the UNet of 2.0-base from random weights, on stored latents.

docs/training-at-scale.md says where the data comes from, and what the benchmark's rules fix.
Source: mlcommons/training, stable_diffusion (configs/train_512_latents.yaml and its README).
"""

import ml_collections

from . import finetune

BATCH_SIZE = 2048
RATE = 1.25e-7  # for each picture of a batch, of the reference


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration. `model.path` gives text encoder and autoencoder, which do not learn.

    Batch size, learning rate and warm-up are free; everything else is fixed by the rules.
    """
    config = finetune.get_config()
    config.model.path = "512-base-ema.ckpt"
    config.model.fresh = ("unet",)
    config.model.changes = {"unet": {"norm_groups": 16}, "schedule": {"prediction": "v"}}
    config.data.update(parts=(), buckets=False, flip=0.0)
    # The moments' folder as we have it in mind; MLCommons' own configuration names webdataset-latents-filtered
    config.data.cached = ("laion-400m/webdataset-moments-filtered/{00000..00831}.tar",)
    config.batch_size = BATCH_SIZE
    config.objective.dropout = 0.0
    config.optim.update(steps=10_000, learning_rate=RATE * BATCH_SIZE, warmup_most=1000, clip=None)
    config.optim.update(beta1=0.9, beta2=0.999, weight_decay=0.01, decay_all=True)
    config.dtype = "bfloat16"
    config.ema.decay = None
    config.mlperf = {"every": 512_000, "targets": {"fid": 90.0, "openclip-score": 0.15}, "stop": True}
    config.validation.metrics.update(
        measures=("fid", "openclip-score"),
        captions="coco2014/val2014_30k.tsv",
        count=30_000,
        reference="coco2014/val2014_512x512_30k_stats.npz",
        files={"inception": "pt_inception-2015-12-05-6726825d.pth", "openclip": "CLIP-ViT-H-14-laion2B-s32B-b79K"},
        settings={"sampler": "ddim", "num_steps": 50, "eta": 0.0, "guidance_scale": 8.0},
        seed=2023,
        batch=32,
    )
    return config
