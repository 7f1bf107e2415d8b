"""Command line: python -m tfds_builders build NAME, or overlap A B."""

import argparse
import sys
from pathlib import Path

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
    build.add_argument(
        "--strict",
        action="store_true",
        help="fail where a file would be skipped or a count is short",
    )
    build.add_argument(
        "--beam_pipeline_options",
        metavar="OPTIONS",
        help="build on Apache Beam, as `runner=DirectRunner,...` (cc_ccii only)",
    )
    build.set_defaults(run=_build)
    overlap = commands.add_parser(
        "overlap",
        help="list near-identical slices of two prepared datasets",
        description="A and B: NAME, NAME/CONFIG or the folder of a prepared dataset, each with "
        ":SPLIT if you like. Prints correlation, split and id of either, tab-separated.",
    )
    overlap.add_argument("a", metavar="A")
    overlap.add_argument("b", metavar="B")
    overlap.add_argument(
        "--least",
        type=float,
        default=0.7,
        help="correlation of fine structure from which a pair is listed; "
        "copies reach 0.8 and more (default: %(default)s)",
    )
    overlap.set_defaults(run=_overlap)
    for command in (build, overlap):
        command.add_argument(
            "--data_dir",
            default=str(DEFAULT_DATA_DIR),
            help="where prepared datasets are kept (default: %(default)s)",
        )
    args = parser.parse_args(argv)
    if args.command == "build" and args.name.partition("/")[0] not in NAMES:
        build.error(f"unknown dataset {args.name!r}; there are: {', '.join(NAMES)}")
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _build(args: argparse.Namespace) -> None:
    options = args.beam_pipeline_options
    beam = None if options is None else [f"--{option}" for option in options.split(",")]
    folder = prepare(
        args.name,
        data_dir=args.data_dir,
        manual_dir=args.manual_dir,
        strict=args.strict,
        beam_options=beam,
    )
    if report := report_of(folder):
        from tfds_builders.report import summary  # not for `--help`: it loads OpenCV

        print(summary(report), file=sys.stderr)
    print(folder)


def _overlap(args: argparse.Namespace) -> None:
    from tfds_builders import overlap

    data_dir = Path(args.data_dir).expanduser()
    first, second = (overlap.open_prepared(what, data_dir) for what in (args.a, args.b))
    pairs = overlap.overlap(first, second, least=args.least)
    for pair in pairs:
        print(pair.line())
    print(
        f"{len(pairs)} near-identical pairs between {len(first.slices)} and "
        f"{len(second.slices)} slices",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
