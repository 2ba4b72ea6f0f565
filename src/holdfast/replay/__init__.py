"""The past learned again: examples kept of it, or networks that draw it."""

from holdfast.replay.buffer import Buffer, Keep
from holdfast.replay.generators import Generator, Holdable, HoldablePart, check_alive, frozen, is_conditional
from holdfast.replay.mergan import MemoryReplayGAN
from holdfast.replay.rehearsal import Rehearsal
from holdfast.replay.scholar import Replay, ReplayHead, ReplaySource, Scholar, mixed, replay_heads, replay_loss
from holdfast.replay.vae import VAE
from holdfast.replay.wgan import WGAN, Alignment

__all__ = [
    "VAE",
    "WGAN",
    "Alignment",
    "Buffer",
    "Generator",
    "Holdable",
    "HoldablePart",
    "Keep",
    "MemoryReplayGAN",
    "Rehearsal",
    "Replay",
    "ReplayHead",
    "ReplaySource",
    "Scholar",
    "check_alive",
    "frozen",
    "is_conditional",
    "mixed",
    "replay_heads",
    "replay_loss",
]
