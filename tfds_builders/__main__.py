"""Command line: python -m tfds_builders build NAME [--manual_dir DIR] [--data_dir DIR]."""

import argparse
import sys

from tfds_builders import DEFAULT_DATA_DIR, NAMES, prepare, report_of


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
    build.add_argument("--strict", action="store_true",
                       help="fail where a file would be skipped or a count is short")
    build.add_argument("--beam_pipeline_options",
                       help="build on Apache Beam, as `runner=DirectRunner,...` (cc_ccii only)")
    args = parser.parse_args(argv)
    if args.name.partition("/")[0] not in NAMES:
        build.error(f"unknown dataset {args.name!r}; there are: {', '.join(NAMES)}")
    beam = args.beam_pipeline_options and [
        f"--{option}" for option in args.beam_pipeline_options.split(",")
    ]
    try:
        folder = prepare(args.name, data_dir=args.data_dir, manual_dir=args.manual_dir,
                         strict=args.strict, beam_options=beam)
        report = report_of(folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if report:
        from tfds_builders.report import summary  # not for `--help`: it loads OpenCV

        print(summary(report), file=sys.stderr)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
