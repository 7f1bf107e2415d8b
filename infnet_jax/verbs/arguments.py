"""Arguments that several verbs take."""

import argparse
from pathlib import Path

RUN = "the --workdir of a finished run of main.py, or an export of it"


def existing(text: str) -> Path:
    """A path that must exist; argparse turns the error into the usage line."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the required `--checkpoint`."""
    parser.add_argument("--checkpoint", type=existing, required=True, metavar="DIR", help=RUN)


def add_tta(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds `--tta` and `--no-tta`; `tta` is None without either."""
    parser.add_argument("--tta", action=argparse.BooleanOptionalAction, default=None, help=text)


def add_lungs(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds `--lungs`, read by `verbs.lungs.choose`."""
    parser.add_argument("--lungs", default="morphology", metavar="WAY", help=text)
