"""Algorithm 1's order of play, and the masks that it is played with (eq. 2-3)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from infnet_jax.models import coach as coach_lib

Scores = Mapping[str, jax.Array]
Size = Sequence[int]


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
    """The order of play, as (`coach` or `net`, steps) pairs, and the first steps' number.

    Before that number of steps the masks are random; the network plays alone.

    Args:
      schedule: `per_epoch` (Algorithm 1: every epoch has coach steps, then network steps) or
        `blocks` (the public code: round i trains the coach for `blocks[i]` epochs, then the net).
      epochs: rounds of `per_epoch`.
      steps_per_epoch: batches in one pass over the data.
      coach_steps, net_steps: steps of each player in a `per_epoch` round; 0 is one pass.
      blocks: epochs of each round of `blocks`.
      warmup_random_rounds: first rounds without a coach (random masks only).
      use_coach: False keeps random masks to the end (the baseline without a coach).

    Raises:
      ValueError: unknown schedule.
    """
    if schedule == "per_epoch":
        plan = [(coach_steps or steps_per_epoch, net_steps or steps_per_epoch)] * epochs
    elif schedule == "blocks":
        plan = [(n * steps_per_epoch, n * steps_per_epoch) for n in blocks]
    else:
        raise ValueError(f"pretrain.rounds.schedule={schedule!r}: choose per_epoch or blocks")
    n_alone = warmup_random_rounds if use_coach else len(plan)
    alone = [("net", n_net) for _, n_net in plan[:n_alone]]
    both = [[("coach", n_coach), ("net", n_net)] for n_coach, n_net in plan[n_alone:]]
    return alone + [turn for pair in both for turn in pair], sum(n for _, n in alone)


class Masks(NamedTuple):
    """Mask makers, each to [B, H, W, 1] float32, 1 = visible (eq. 2-3); sizes are (H, W).

    Attributes:
      train: (output of the coach, size) -> masks through which it learns.
      use: (output of the coach, size) -> masks that serve the network.
      random: (key, batch size, size) -> masks without a coach.
    """

    train: Callable[[Scores, Size], jax.Array]
    use: Callable[[Scores, Size], jax.Array]
    random: Callable[[jax.Array, int, Size], jax.Array]


def make_masks(
    *,
    keep_ratio: float = 0.75,
    alpha_train: float = 1.0,
    alpha_use: float = 100.0,
    hard_use: bool = True,
    inclusive: bool = True,
) -> Masks:
    """The mask makers.

    Args:
      keep_ratio: share of cells left visible (the public `drop_ratio` *keeps* this share).
      alpha_train, alpha_use: steepness of eq. 3 while the coach learns, and while it serves.
      hard_use: threshold the mask when it serves the network.
      inclusive: keep the k-th cell itself (False: as coded, k - 1 cells are kept).
    """

    def masks(score: jax.Array, size: Size, alpha: float, hard: bool) -> jax.Array:
        visible = coach_lib.visible_from_score(
            score, keep_ratio=keep_ratio, alpha=alpha, hard=hard, inclusive=inclusive
        )
        return coach_lib.upsample_mask(visible, (size[0], size[1]))

    def random(key: jax.Array, batch: int, size: Size) -> jax.Array:
        score = coach_lib.random_score(key, (batch, size[0] // 16, size[1] // 16, 1))
        return masks(score, size, alpha_use, True)

    return Masks(
        train=lambda out, size: masks(out["score"], size, alpha_train, False),
        use=lambda out, size: masks(out["score"], size, alpha_use, hard_use),
        random=random,
    )
