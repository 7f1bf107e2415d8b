"""Runs the stages of a config: python main.py --config=configs/selfsup.py [--workdir=DIR]."""

import os
import shlex
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File in configs/, with an optional preset after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything is written; the default is runs/<config>[-<preset>]."
)


def _config_first(argv: list[str]) -> list[str]:
    """The same words with `--config` in front: the keys of other flags are looked up in it."""
    for i, word in enumerate(argv):
        if word == "--":
            break
        if word in ("--config", "-config"):
            return [argv[0], *argv[i : i + 2], *argv[1:i], *argv[i + 2 :]]
        if word.startswith(("--config=", "-config=")):
            return [argv[0], word, *argv[1:i], *argv[i + 1 :]]
    return argv


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; a wrong file, preset, key or value ends with one line and exit code 2."""
    sys.argv = argv = _config_first(argv)  # ml_collections reads the program's own words too
    given = [arg.removeprefix("--").removeprefix("-") for arg in argv[1:]]
    for arg in given:
        path = arg.removeprefix("config=").partition(":")[0]
        if arg.startswith("config=") and not Path(path).is_file():
            _leave(f"--config={path}: there is no such file; try --config=configs/selfsup.py", 2)
    names = {arg.partition("=")[0] for arg in given}
    if "config" not in names and any(name.startswith("config.") for name in names):
        _leave("--config is missing: try --config=configs/selfsup.py", 2)
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        word = str(error).strip("'\"").split()[-1].strip("'\"?")
        keys = [k for k in (arg.partition("=")[0] for arg in given) if word in k.split(".")]
        _leave(f"unknown config key {keys[0] if keys else word}; the keys stand in configs/", 2)
    except (flags.Error, TypeError, ValueError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        _leave(lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}", 2)
    if _CONFIG.value is None and not flags.FLAGS["help"].value:
        _leave("--config is missing: try --config=configs/selfsup.py", 2)
    if len(rest) > 1:
        _leave(f"unexpected argument {rest[1]!r}: settings look like --config.segment.steps=100", 2)
    return rest


def _leave(message: str, code: int) -> None:
    print(f"main.py: {message}", file=sys.stderr)
    sys.exit(code)


def _name() -> str:
    """`selfsup` or `selfsup:semiseg`."""
    file, _, preset = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return f"{Path(file).stem}:{preset}" if preset else Path(file).stem


def main(_: list[str]) -> None:
    """Prepares the dataset if it is not there yet, then hands over to the training loop."""
    logging.set_verbosity(logging.WARNING)
    config, name = _CONFIG.value, _name()
    workdir = Path(_WORKDIR.value or f"runs/{name.replace(':', '-')}")
    try:
        import jax  # slow to import, as is the package, and --help needs neither

        from infnet_jax.config import prepare
        from infnet_jax.runs import mesh
        from infnet_jax.training import run

        mesh.initialise_distributed(config.distributed)
        dataset, mix = mesh.first_process_first(lambda: prepare(config))
        summary = run(
            config,
            workdir=workdir,
            dataset=dataset,
            name=name,
            mix=mix,
            command=shlex.join(["python", *sys.argv]),
        )
        table = summary.parent / "table.txt"
        if not jax.process_index():  # the others would read what it is still writing
            print(table.read_text() if "evaluate" in config.stages else "", end="")
            print(f"summary: {summary}")
    except (ValueError, OSError, TypeError, FloatingPointError) as error:
        if os.environ.get("INFNET_DEBUG"):
            raise
        _leave(" ".join(str(error).split()), 1)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
