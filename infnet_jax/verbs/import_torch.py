"""`infnet-jax import-torch`: public PyTorch weights as ours."""

import argparse
from pathlib import Path

from infnet_jax.verbs import existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("file", type=existing, metavar="FILE", help="a .pth file")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for weights=OUT")


def run(options: argparse.Namespace) -> int:
    """Converts the file, prints what was not used, and returns 0; see `weights.import_torch`."""
    from infnet_jax import weights

    report = weights.import_torch(options.file, options.out)
    print(f"{options.out}: {report['network']}, {len(report['matched'])} tensors converted")
    for name, reason in report["unused"].items():
        print(f"  not used: {name} ({reason})")
    return 0
