"""A config file with its overrides, and its datasets prepared: for `main.py` and `study`."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

import tfds_builders
from infnet_jax.data.sources import Mix, Part, parse_mix
from infnet_jax.plan.resolve import resolve


def load(file_and_preset: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the config of `FILE[:PRESET]` with overrides `--config.KEY=VALUE`.

    A ValueError of one line names a file, preset, key or value that is wrong.
    """
    name, _, preset = file_and_preset.partition(":")
    file = Path(name)
    if not file.is_file():
        raise ValueError(f"--config={file}: there is no such file; try --config=configs/study.py")
    sys.path.insert(0, str(file.resolve().parent.parent))  # it imports its neighbours
    words, values = ["infnet-jax", *overrides], flags.FlagValues()
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise ValueError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(*filter(None, [preset]))
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
        values(words)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{file_and_preset}: {lines[-1] if lines else error}") from error
    finally:
        sys.path.pop(0)
    return config


def prepare(config: ConfigDict) -> tuple[Path, Mix | None]:
    """Prepares the datasets of a run; gives the folder of its own, and the mix of `data.pretrain`.

    Raises:
      ValueError: a config that cannot be run, an unknown dataset, or one that cannot be prepared.
      FileNotFoundError: the source files of a dataset are missing.
    """
    resolve(config, Path())  # a wrong config must not wait until the datasets are built
    parts = parse_mix(config.data.pretrain)
    for part in parts:  # nor must a misspelt name
        try:
            tfds_builders.find(part.name)
        except ValueError as error:
            raise ValueError(f"data.pretrain: {error}") from error
    dataset = build(config.data.name, config.data)
    if not parts:
        return dataset, None

    def copies(part: Part) -> list[str]:
        from tfds_builders import overlap  # slow to import, and few runs have a mix

        assert part.folder is not None
        return overlap.copies(part.folder, part.split, dataset, config.data.test)

    built = (part._replace(folder=build(part.name, config.data)) for part in parts)
    return dataset, Mix(tuple(built), copies)


def build(name: str, data: ConfigDict) -> Path:
    """Prepares one dataset, from `manual_dir/<builder>` if that is a folder; its version folder."""
    manual = Path(data.manual_dir) if data.manual_dir else None
    own = manual and manual.expanduser() / name.partition("/")[0]
    manual = own if own and own.is_dir() else manual
    data_dir = data.data_dir or tfds_builders.DEFAULT_DATA_DIR
    return tfds_builders.prepare(name, data_dir=data_dir, manual_dir=manual)
