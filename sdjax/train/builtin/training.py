"""Trains the built-in model, from scratch or from where the last run stopped; `make train-builtin`.

    python -m sdjax.train.builtin.training --folder runs/builtin [--config.autoencoder.optim.steps=1000 ...]

There are five stages, each kept in the folder: the vocabulary; the autoencoder; the latents of a fixed set of pictures;
the text encoder and the denoising network together; and the parameters of that network that differ for inpainting.
`export` writes the finished stages as a native model.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from sdjax.config import ModelConfig
from sdjax.errors import sentence
from sdjax.loading.builtin import inpainting_config
from sdjax.loading.run_folder import read_parts
from sdjax.loading.start_model import fit_params
from sdjax.loading.trainable import Leaves
from sdjax.nn import init_params
from sdjax.nn.jax_settings import make_key, pinned
from sdjax.pipeline import cache
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.storage import manifest
from sdjax.storage.addresses import local
from sdjax.train.builtin import emoji, latents, subjects, vocabulary
from sdjax.train.checkpoints.checkpoint import Checkpoints
from sdjax.train.data.ahead import ahead
from sdjax.train.loop import Stopped, fit
from sdjax.train.metrics import Speed, Writers
from sdjax.train.objectives.autoencoder import autoencoder_loss
from sdjax.train.objectives.conditioning import CONDITIONS
from sdjax.train.objectives.diffusion import Denoising, DiffusionObjective, diffusion_loss
from sdjax.train.objectives.objective import Loss
from sdjax.train.optim import OptimConfig, learning_rate, make_optimizer
from sdjax.train.state import TrainState
from sdjax.train.step import make_train_step
from sdjax.typing import Params

# Pictures are batch n of a seed; every use has its own, so that none sees another's
_WORDS, _PIXELS, _LATENTS, _DRAWS, _COLLAGES, _HOLES = USES = range(6)

SCALE, KEPT = "scale_factor.json", "settings.json"
MADE_FROM = {
    "autoencoder": ("latents", SCALE, "diffusion"),
    "diffusion": ("inpainting",),
}  # what must be made again if the stage changes
FIXED = (
    "seed",
    "model",
    "vocabulary",
    "latents",
)  # settings that may not change in a run: the stored files depend on them


@dataclasses.dataclass(frozen=True)
class BuiltinTraining:
    """A training run of the built-in model, kept in a folder."""

    settings: ml_collections.ConfigDict
    folder: pathlib.Path
    font: str | None = None

    @functools.cached_property
    def model(self) -> ModelConfig:
        """The model's configuration, with the scale factor once it was measured."""
        model = ModelConfig.from_dict(self.settings.model.to_dict())
        path = self.folder / SCALE
        if not path.exists():
            return model
        factor = json.loads(path.read_text())["scale_factor"]
        return dataclasses.replace(model, vae=dataclasses.replace(model.vae, scale_factor=factor))

    @functools.cached_property
    def sprites(self) -> emoji.Sprites:
        """The subjects' pictures."""
        return emoji.Sprites.render(self.settings.model.image_size, self.font)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, learned from captions on first use and kept."""
        folder = self.folder / "tokenizer"
        if not folder.exists():
            self.say("learning the vocabulary")
            self.learn_vocabulary().save(folder)
        return Tokenizer.load(folder)

    def learn_vocabulary(self) -> Tokenizer:
        """Returns the tokenizer that is learned from the run's captions."""
        scenes = emoji.scenes(self._seed(_WORDS), 0, self.settings.vocabulary.captions)
        return vocabulary.learn((scene.caption for scene in scenes), self.settings.model.text.vocab_size)

    def say(self, text: str) -> None:
        """Prints a line with the time."""
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)

    def pictures(self, seed: int, n: int, count: int) -> tuple[np.ndarray, list[str]]:
        """Returns batch n of a seed: uint8 pictures and captions."""
        scenes = emoji.scenes(seed, n, count)
        return np.stack([self.sprites.draw(scene) for scene in scenes]), [scene.caption for scene in scenes]

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the captions' token ids as the text encoder wants them."""
        text = self.model.text
        return self.tokenizer(captions, length=text.max_length, pad_token_id=text.pad_token_id)

    @property
    def inpainting(self) -> Leaves:
        """The parameters that the inpainting model does not share with the text-to-image model."""
        return Leaves(f"^unet/({'|'.join(map(re.escape, self.settings.inpainting.changed))})/")

    def initial(self, *parts: str) -> Params:
        """Returns parts of the model as they are before the first step."""
        params = jax.jit(init_params, static_argnums=0)(self.model, make_key(self.settings.seed))
        return {name: params[name] for name in parts}

    def averaged(self, stage: str) -> tuple[int, Params] | None:
        """Returns the number of steps and the averaged parameters of a stage's newest checkpoint, if there is one."""
        found = read_parts(self.folder / stage, "ema_params", say=self.say)
        return None if found is None else (found[0], found[1]["ema_params"])

    def check_settings(self) -> None:
        """Stores the settings that the run's files depend on. Raises ValueError if they differ from the stored ones."""
        now = {name: self.settings.to_dict()[name] for name in FIXED}
        now["subjects"], now["colours"] = list(subjects.names()), subjects.COLOURS
        now = json.loads(json.dumps(now))
        path = self.folder / KEPT
        if not path.exists():
            manifest.write_json(path, now)
        before = json.loads(path.read_text())
        changed = [name for name in now if now[name] != before.get(name)]
        if changed:
            raise ValueError(
                f"{self.folder} was trained with another {', another '.join(changed)} (see {path}); "
                "use the old value, or train in another folder"
            )

    def check_stages(self) -> None:
        """Raises ValueError if a stage would be trained further although later stages were made from it."""
        for stage, names in MADE_FROM.items():
            wanted, done = self.settings[stage].optim.steps, max(manifest.steps(self.folder / stage), default=0)
            made = [str(self.folder / name) for name in names if (self.folder / name).exists()]
            if done < wanted and made:
                raise ValueError(
                    f"the stage {stage} would continue from step {done} to {wanted}, and {', '.join(made)} would no "
                    f"longer fit; delete {'them' if len(made) > 1 else 'it'} first, or leave its steps at {done}"
                )

    @pinned()
    def train(self) -> None:
        """Runs the stages in order, each from where it stopped."""
        cache.enable()
        self.check_settings()
        self.check_stages()
        autoencoder = self._fit_autoencoder()
        pool = self._latents(autoencoder)
        base = self._fit_diffusion(pool)
        self._fit_inpainting({**base, "vae": autoencoder})

    def _fit_autoencoder(self) -> Params:
        s = self.settings.autoencoder
        if (done := self._done("autoencoder")) is not None:
            return done["vae"]
        self.say(f"training the autoencoder, {s.optim.steps} steps of {s.batch_size} pictures")
        loss = autoencoder_loss(self.model.vae, kl_weight=s.kl_weight, edge_weight=s.edge_weight)
        collages = round(s.collages * s.batch_size)

        def images(n: int) -> dict[str, np.ndarray]:
            scenes = emoji.scenes(self._seed(_PIXELS), n, s.batch_size - collages)
            scenes += emoji.collages(self._seed(_COLLAGES), n, collages)
            return {"image": np.stack([self.sprites.draw(scene) for scene in scenes])}

        return self._fit("autoencoder", loss, images, self.initial("vae"))["vae"]

    def _latents(self, autoencoder: Params) -> dict[str, np.ndarray]:
        s = self.settings.latents

        def shard(k: int, count: int) -> tuple[np.ndarray, np.ndarray]:
            images, captions = self.pictures(self._seed(_LATENTS), k, count)
            return images, self.tokens(captions)

        pool = latents.encode_to_folder(
            self.model.vae, autoencoder, shard, self.folder / "latents", count=s.count, shard=s.shard, say=self.say
        )
        if not (self.folder / SCALE).exists():
            factor = {"scale_factor": latents.scale_factor(pool["moments"])}
            manifest.write_json(self.folder / SCALE, factor)
            self.__dict__.pop("model", None)  # it is read from there
        return pool

    def _fit_diffusion(self, pool: dict[str, np.ndarray]) -> Params:
        s = self.settings.diffusion
        if (done := self._done("diffusion")) is not None:
            return done
        objective = DiffusionObjective(gamma=s.gamma, floor=s.floor, dropout=s.dropout, offset_noise=s.offset_noise)
        loss = diffusion_loss(Denoising(self.model, objective, self.tokens([""])[0]))
        self.say(f"training text encoder and UNet, {s.optim.steps} steps of {s.batch_size} latents")

        def drawn(n: int) -> dict[str, np.ndarray]:
            return latents.draw(pool, self._seed(_DRAWS), n, s.batch_size)

        return self._fit("diffusion", loss, drawn, self.initial("unet", "text"))

    def _fit_inpainting(self, base: Params) -> None:
        s = self.settings.inpainting
        if self._done("inpainting") is not None:
            return
        model = inpainting_config(self.model)
        unet = {"unet": fit_params(self.model, model, jax.tree.map(np.asarray, base))[0]["unet"]}
        what = self.inpainting
        changed = jax.tree.map(jnp.asarray, what.init(unet, make_key(self.settings.seed)))
        objective = DiffusionObjective(
            gamma=s.gamma, floor=s.floor, dropout=s.dropout, holes="random", whole_holes=s.whole_holes
        )
        loss = diffusion_loss(Denoising(model, objective, self.tokens([""])[0], CONDITIONS["inpainting"]))

        def drawn(n: int) -> dict[str, np.ndarray]:
            images, captions = self.pictures(self._seed(_HOLES), n, s.batch_size)
            return {"image": images, "ids": self.tokens(captions)}

        self.say(f"training what differs for inpainting, {s.optim.steps} steps of {s.batch_size} pictures")
        self._fit("inpainting", loss, drawn, changed, {**base, **what.fixed(unet)})

    def _done(self, stage: str) -> Params | None:
        found = self.averaged(stage)
        return found[1] if found is not None and found[0] >= self.settings[stage].optim.steps else None

    def _fit(
        self, stage: str, loss: Loss, batch: Callable[[int], Any], params: Params, frozen: Params | None = None
    ) -> Params:
        s, folder = self.settings[stage], self.folder / stage
        rate = learning_rate(self._optim(stage))
        step = make_train_step(loss, self._optimizer(stage), s.ema_decay, rate=lambda _, updates: rate(updates))
        step = jax.jit(step, donate_argnums=0)
        with Checkpoints(folder, say=self.say) as checkpoints:
            state = TrainState.create(params, self._optimizer(stage), self.settings.seed)
            state = checkpoints.restore(state) or state
            log = Writers(
                folder, s.optim.steps, first=int(state.step), speed=Speed(s.batch_size), tensorboard=False
            )  # fmt: skip
            with contextlib.closing(log):
                state = fit(
                    state, lambda state, batch: step(state, frozen or {}, batch),
                    lambda first: ahead(batch, first, s.optim.steps), steps=s.optim.steps, checkpoints=checkpoints,
                    log=log, log_every=self.settings.log_every, save_every=self.settings.save_every,
                )  # fmt: skip
        assert state.ema_params is not None  # every stage keeps an average
        return state.ema_params

    def _optimizer(self, stage: str) -> optax.GradientTransformation:
        return make_optimizer(self._optim(stage))

    def _optim(self, stage: str) -> OptimConfig:
        return OptimConfig(**self.settings[stage].optim.to_dict())

    def _seed(self, use: int) -> int:
        return len(USES) * self.settings.seed + use


def main() -> None:
    """Trains as the command line's flags say."""
    from absl import app, flags, logging
    from ml_collections import config_flags

    from sdjax.configs import builtin

    settings = config_flags.DEFINE_config_file("config", builtin.__file__, "The model's description and its training.")
    folder = flags.DEFINE_string("folder", "runs/builtin", "Where checkpoints are kept; an existing run goes on.")
    font = flags.DEFINE_string("font", None, "NotoColorEmoji.ttf, if it is not in one of the usual folders.")

    def run(_: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax logs every save at length
        try:
            BuiltinTraining(settings.value, pathlib.Path(local(folder.value)), font.value).train()
        except Stopped as stopped:
            print(stopped)
        except (ValueError, OSError) as error:
            raise SystemExit(f"error: {sentence(error)}") from None

    app.run(run)
