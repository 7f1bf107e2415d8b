"""Dataset builders in TFDS style; they need no TensorFlow and know nothing of `infnet_jax`.

A prepared dataset is read with plain TFDS (`tfds.builder_from_directory`); nothing here is needed
for that.
"""

import contextlib
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = (
    "cc_ccii",
    "covid_chestxray",
    "covid_ct",
    "covid_semiseg",
    "folders",
    "ictcf",
    "medseg",
    "phantom",
)
RESUMABLE = "incomplete.resume_"  # starts the name of a folder that a killed build goes on from
DEFAULT_DATA_DIR = Path("~/tensorflow_datasets")


def prepare(
    name: str,
    *,
    data_dir: str | Path = DEFAULT_DATA_DIR,
    manual_dir: str | Path | None = None,
    strict: bool = False,
    beam_options: list[str] | None = None,
) -> Path:
    """Builds a dataset unless it is there already.

    Nothing appears under the final name unless the build succeeds. Several processes may ask for
    the same dataset: one builds, the others wait.

    Args:
      name: `builder` or `builder/config`, such as `covid_semiseg/binary`; without a config the
        builder's first one.
      data_dir: where prepared datasets live, as in TFDS; `~` is expanded.
      manual_dir: the folder with the downloaded source files; not needed for `phantom`.
      strict: a file that would be skipped, or a count that is not as expected, is an error.
      beam_options: builds on Apache Beam (the extra `beam`) with these options of its pipelines,
        such as `--runner=DirectRunner`; only for datasets that are made in shards (cc_ccii/slices).

    Returns:
      The versioned folder, such as `data_dir/covid_semiseg/binary/1.0.0`, to be read with
      `tfds.builder_from_directory`.

    Raises:
      ValueError: unknown name or config, or a source file is unfit; the message names it.
        The dataset that is there already was built from other files than lie in `manual_dir`, or,
        if strict, with skips.
      FileNotFoundError: `manual_dir` is missing or has another layout.
    """
    import tensorflow_datasets as tfds  # takes a second; `--help` must not wait for it

    data_dir = Path(data_dir).expanduser().absolute()
    cls, config = find(name)
    builder = cls(config=config, data_dir=data_dir, strict=strict)
    final = Path(builder.data_dir)
    if (final / "dataset_info.json").exists():
        if cls.MANUAL_DOWNLOAD_INSTRUCTIONS and manual_dir is not None:
            _check_source(final, _checked_manual_dir(name, manual_dir, cls))
        return _existing(final, strict)
    if cls.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual_dir = _checked_manual_dir(name, manual_dir, cls)
    beam = _pipeline_options(name, beam_options, builder)
    with _lock(final.parent):
        if (final / "dataset_info.json").exists():  # another process was faster
            return _existing(final, strict)
        for leftover in final.parent.glob(f"incomplete.*_{final.name}"):
            if leftover.name != f"{RESUMABLE}{final.name}":
                shutil.rmtree(leftover)  # of a build that was killed: we hold the lock
        config = tfds.download.DownloadConfig(
            manual_dir=manual_dir, try_download_gcs=False, beam_options=beam
        )
        with _progress():
            builder.download_and_prepare(download_config=config)
    return final


def find(name: str) -> tuple[type, str]:
    """The builder of `builder` or `builder/config`, and its config: the first unless named.

    Raises:
      ValueError: there is no such builder, or it has no such config.
    """
    builder_name, _, config = name.partition("/")
    if builder_name not in NAMES:
        raise ValueError(f"unknown dataset {name!r}; there are: {', '.join(NAMES)}")
    module = importlib.import_module(f"tfds_builders.{builder_name}.{builder_name}_dataset_builder")
    configs = [c.name for c in module.Builder.BUILDER_CONFIGS]
    if not configs:
        raise ValueError(f"builder {builder_name} has no BUILDER_CONFIGS: give it one, `default`")
    if config and config not in configs:
        raise ValueError(f"unknown config {name!r}; {builder_name} has: {', '.join(configs)}")
    return module.Builder, config or configs[0]


def report_of(folder: Path) -> dict[str, Any]:
    """Returns the quality report beside a prepared dataset; empty when it has none."""
    path = folder / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _check_source(folder: Path, manual_dir: Path) -> None:
    """Refuses a prepared dataset that was built from other files."""
    from tfds_builders import source

    if lines := source.differences(folder, manual_dir):
        more = f" (and {len(lines) - source.NAMED} more)" if len(lines) > source.NAMED else ""
        raise ValueError(
            f"{folder} was built from other files than lie in {manual_dir} now: "
            f"{', '.join(lines[: source.NAMED])}{more}; remove the first to build it again, or "
            "give another data_dir"
        )


def _existing(folder: Path, strict: bool) -> Path:
    report = report_of(folder)
    counts = report.get("expected", {}).values()
    if strict and (report.get("skipped") or any(c["expected"] != c["found"] for c in counts)):
        raise ValueError(
            f"{folder}: was built with skips or short counts (see report.json in it); "
            "remove it to build it strictly"
        )
    return folder


def _pipeline_options(name: str, options: list[str] | None, builder: Any) -> Any:
    """Makes Beam's options of command-line flags; ValueError where Beam is absent or no use."""
    if options is None:
        return None
    if not getattr(builder, "in_shards", False):
        raise ValueError(f"{name} is not built in shards; leave Beam's options out")
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(f"{name} on Beam needs the extra: pip install infnet-jax[beam]") from error
    return PipelineOptions(options)


def _checked_manual_dir(name: str, manual_dir: str | Path | None, builder: type) -> Path:
    how = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    if manual_dir is None:
        raise FileNotFoundError(f"{name} needs manual_dir. {how}")
    manual_dir = Path(manual_dir).expanduser().absolute()
    if not manual_dir.is_dir():
        raise FileNotFoundError(f"{manual_dir}: manual_dir of {name} is no folder")
    if next(manual_dir.iterdir(), None) is None:
        raise FileNotFoundError(f"{manual_dir}: manual_dir of {name} is empty. {how}")
    return manual_dir


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds a lock that the system drops when the process dies, however it dies."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress() -> Iterator[None]:
    """Shows TFDS's progress bars only to a person, and keeps its notices off stdout."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else None):
            yield
    finally:
        tfds.enable_progress_bar()
