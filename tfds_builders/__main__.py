"""Command line: python -m tfds_builders build NAME [--manual_dir DIR] [--data_dir DIR]."""

import argparse
import sys

from tfds_builders import DEFAULT_DATA_DIR, NAMES, prepare


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, 1 for unfit or missing data, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m tfds_builders", description="Prepare datasets for infnet_jax with TFDS."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build a dataset unless it is there already")
    build.add_argument("name", metavar="NAME", help=f"NAME or NAME/CONFIG of {', '.join(NAMES)}")
    build.add_argument("--manual_dir", help="folder with the source files you have downloaded")
    build.add_argument("--data_dir", default=str(DEFAULT_DATA_DIR),
                       help="where prepared datasets are kept (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.name.partition("/")[0] not in NAMES:
        build.error(f"unknown dataset {args.name!r}; there are: {', '.join(NAMES)}")
    try:
        folder = prepare(args.name, data_dir=args.data_dir, manual_dir=args.manual_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
