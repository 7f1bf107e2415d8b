"""Algorithm 1's order of play, and the masks that it is played with (eq. 2-3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from infnet_jax.models.coach import visible_from_score
from infnet_jax.models.layers import resize_nearest


def make_rounds(
    *,
    schedule: str,
    epochs: int,
    steps_per_epoch: int,
    coach_steps: int,
    net_steps: int,
    blocks: Sequence[int],
    warmup_random_rounds: int,
    use_coach: bool,
) -> tuple[list[tuple[str, int]], int]:
    """The order of play as (`coach` or `net`, steps) pairs; how many first steps `net` is alone.

    It is alone, with random masks, for `warmup_random_rounds`, and without `use_coach` to the end.
    `schedule` is `per_epoch` (Algorithm 1: each of `epochs` rounds has `coach_steps`, then
    `net_steps`, 0 for one pass over the data) or `blocks` (the public code: round i trains the
    coach for `blocks[i]` epochs, then the network); else ValueError.
    """
    if schedule == "per_epoch":
        plan = [(coach_steps or steps_per_epoch, net_steps or steps_per_epoch)] * epochs
    elif schedule == "blocks":
        plan = [(n * steps_per_epoch, n * steps_per_epoch) for n in blocks]
    else:
        raise ValueError(f"pretrain.rounds.schedule={schedule!r}: choose per_epoch or blocks")
    n_alone = warmup_random_rounds if use_coach else len(plan)
    alone = [("net", n_net) for _, n_net in plan[:n_alone]]
    both = [turn for pair in plan[n_alone:] for turn in zip(("coach", "net"), pair, strict=True)]
    return alone + both, sum(n for _, n in alone)


@dataclass(frozen=True)
class Masks:
    """Mask makers, each to [B, H, W, 1] float32, 1 = visible (eq. 2-3); sizes are (H, W)."""

    keep_ratio: float = 0.75  # share of cells left visible (the public `drop_ratio` *keeps* it)
    alpha_train: float = 1.0  # steepness of eq. 3 while the coach learns
    alpha_use: float = 100.0  # and while it serves the network
    hard_use: bool = True  # threshold the mask when it serves the network
    inclusive: bool = True  # keep the k-th cell itself (False: as coded, k - 1 cells are kept)

    def train(self, score: jax.Array, size: Sequence[int]) -> jax.Array:
        """Masks through which the coach learns, of its scores [B, h, w, 1]."""
        return self._make(score, size, self.alpha_train, False)

    def use(self, score: jax.Array, size: Sequence[int]) -> jax.Array:
        """Masks that serve the network, of the coach's scores."""
        return self._make(score, size, self.alpha_use, self.hard_use)

    def random(self, key: jax.Array, batch: int, size: Sequence[int]) -> jax.Array:
        """Masks without a coach."""
        score = jax.random.uniform(key, (batch, size[0] // 16, size[1] // 16, 1))
        return self._make(score, size, self.alpha_use, True)

    def _make(self, score: jax.Array, size: Sequence[int], alpha: float, hard: bool) -> jax.Array:
        visible = visible_from_score(
            score, keep_ratio=self.keep_ratio, alpha=alpha, hard=hard, inclusive=self.inclusive
        )
        return resize_nearest(visible, (size[0], size[1]))


def cell_means(pixels: jax.Array) -> jax.Array:
    """Means over the 16 x 16 cells of a mask: [B, H, W] -> [B, H / 16, W / 16]."""
    b, h, w = pixels.shape
    return pixels.reshape(b, h // 16, 16, w // 16, 16).mean((2, 4))
