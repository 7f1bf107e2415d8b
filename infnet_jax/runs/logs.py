"""What a stage writes while it runs: metrics.jsonl, TensorBoard events and its progress."""

import contextlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from absl import logging

from infnet_jax.files import write_text

_REFRESH = 0.2  # seconds: at most five redraws of the progress line in one
_LINE = 60.0  # seconds: a log file gets a whole line instead, once a minute
_N_SHOWN = 3  # scalars at the end of the progress line


def clock(seconds: float) -> str:
    """Returns `m:ss`, or `h:mm:ss` from one hour on, of a duration rounded to whole seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl` in their order; a missing file has none.

    Each has `stage` str, `step` int and the scalars, None where not finite. A line that is no JSON
    object with a `step` (torn by a kill in mid-write) is left out with a warning.
    """
    rows, text = [], path.read_text(errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            logging.warning("%s, line %d: not a row of metrics, left out", path, number)
    return rows


class RunLog:
    """The log of one stage; safe to open again after an interruption.

    Speed counts training only: the first step of each phase (which holds its compilation, reported
    as `compile_seconds`) and all inside `paused()` are left out. `phases` have run at least once.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        total_steps: int,
        batch_size: int,
        start_step: int = 0,
        active: bool = True,
    ):
        """Opens `metrics.jsonl` and `tensorboard/`, and drops earlier rows from `start_step` on.

        `batch_size` is that of all processes. If not `active` (all but the first of them), nothing
        is ever written.
        """
        if not 0 <= start_step <= total_steps:
            raise ValueError(f"{name}: start_step {start_step} is not in 0..{total_steps}")
        self.metrics_path, self.phases = directory / "metrics.jsonl", set[str]()
        self.name, self._total_steps, self._batch_size = name, total_steps, batch_size
        self._step = self._start_step = start_step
        self._last: dict[str, float] = {}
        self._n_timed, self._timed_seconds, self._compile_seconds = 0, 0.0, 0.0
        self._began = self._mark = time.perf_counter()
        self._terminal = sys.stderr.isatty()
        self._drawn = -math.inf if self._terminal else self._began
        self._writer: Any = None
        self._file: IO[str] | None = None  # None: not active, or closed
        if not active:
            return
        from tensorboardX import SummaryWriter  # slow to import, and only one process needs it

        kept = [row for row in load_rows(self.metrics_path) if row["step"] < start_step]
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.metrics_path.open("a")
        if start_step == 0:
            shutil.rmtree(directory / "tensorboard", ignore_errors=True)  # begun again, not resumed
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start_step)
        where = f"from step {start_step} of" if start_step else "for"
        self._say(f"{name}: {where} {total_steps} steps, batch {batch_size}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes scalars of the state after `step` updates; in metrics.jsonl null if not finite."""
        self._last = numbers = {key: float(value) for key, value in values.items()}
        if self._file:
            row = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
            self._file.write(json.dumps({"stage": self.name, "step": int(step), **row}) + "\n")
            self._file.flush()
            for key, value in numbers.items():
                self._writer.add_scalar(f"{self.name}/{key}", value, int(step))

    def image(self, tag: str, array: np.ndarray, step: int) -> None:
        """Writes a picture, [H, W, 3] uint8 (else a ValueError), to TensorBoard as `name/tag`."""
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ValueError(f"{tag}: want [H, W, 3] uint8, got {array.shape} {array.dtype}")
        if self._writer:
            self._writer.add_image(f"{self.name}/{tag}", array, int(step), dataformats="HWC")

    def tick(self, step: int, phase: str = "") -> None:
        """Counts one finished update, the `step`-th, and shows the progress if that is due.

        `phase` is the compiled function that ran (say "net 352"); its first run is not timed.
        """
        now = time.perf_counter()
        if phase in self.phases:
            self._n_timed += 1
            self._timed_seconds += now - self._mark
        else:
            self.phases.add(phase)
            self._compile_seconds += now - self._mark
        self._mark, self._step = now, step
        if self._file and now - self._drawn >= (_REFRESH if self._terminal else _LINE):
            self._drawn = now
            self._draw()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is done inside out of the speed; fetch a result of the last step before it."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - before

    def timing(self) -> dict[str, Any]:
        """Returns the row for the summary; seconds are those of this process."""
        return {
            "name": self.name,
            "seconds": time.perf_counter() - self._began,
            "steps": self._step - self._start_step,
            "steps_per_second": self._rate(),
            "images_per_second": self._rate() * self._batch_size,
            "compile_seconds": self._compile_seconds,
        }

    def close(self) -> None:
        """Prints the closing line and closes the files; a second call does nothing."""
        if self._file is None:
            return
        self._writer.close()
        self._file.close()
        self._writer = self._file = None
        state = "done" if self._step >= self._total_steps else f"stopped at step {self._step}"
        steps = f"{self._step - self._start_step} steps in {clock(self.timing()['seconds'])}"
        compiled = f"(first steps with compilation {clock(self._compile_seconds)})"
        self._say(f"{self.name}: {state}, {steps} {compiled}, {self._speed(', ')}")

    def _rate(self) -> float:
        """Updates a second of training alone; 0.0 while no step could be timed."""
        return self._n_timed / self._timed_seconds if self._timed_seconds > 0 else 0.0

    def _speed(self, comma: str) -> str:
        return f"{self._rate():.3g} steps/s{comma}{self._rate() * self._batch_size:.3g} images/s"

    def _draw(self) -> None:
        """Shows how far the stage is: in place, cut to the terminal's width, or as a line."""
        rate, total = self._rate(), self._total_steps
        left = clock((total - self._step) / rate) if rate else "--:--"
        done = f"{self.name} {self._step}/{total} {100 * self._step // max(total, 1)}%"
        shown = [f"{key} {value:.4g}" for key, value in list(self._last.items())[:_N_SHOWN]]
        line = "  ".join([done, self._speed(" "), f"ETA {left}", *shown])
        if not self._terminal:
            return self._say(line)
        line = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def _say(self, line: str) -> None:
        """Prints a line of its own, over the progress line if there is one."""
        print("\r\x1b[K" * self._terminal + line, file=sys.stderr, flush=True)
