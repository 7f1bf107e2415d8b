"""The command line: `infnet-jax VERB ...`. Each verb imports what it needs when it runs."""

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from infnet_jax import __version__

USAGE_ERROR, FAILURE = 2, 1


class _Parser(argparse.ArgumentParser):
    """Answers a wrong call with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Prints what was wrong and where help is; exits with 2."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code.

    Args:
      argv: the words after the program's name; None reads `sys.argv`.

    Returns:
      0, or what the verb returns; 1 if it fails on what it was given (ValueError, missing file:
      one line on stderr). A wrong call or a missing path exits with 2 (SystemExit).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _make_parser()
    if words and not words[0].startswith("-"):
        _check_verb(parser, words[0])
    options, more = parser.parse_known_args(words)
    options.overrides = more if options.verb == "study" else []
    wrong = [w for w in more if not (w in options.overrides and w.startswith("--config."))]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough: no error, and no second flush at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (ValueError, OSError, ImportError) as error:
        print(f"{parser.prog} {options.verb}: {_one_line(error)}", file=sys.stderr)
        return FAILURE


def _make_parser() -> _Parser:
    """The verbs and their arguments."""
    parser = _Parser(prog="infnet-jax", description=__doc__.split(":")[0] + " of infnet_jax.")
    parser.add_argument("--version", action="version", version=f"infnet-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    verb = verbs.add_parser("evaluate", help="score predicted masks against true ones")
    verb.add_argument("--predictions", type=_existing, required=True, metavar="DIR")
    verb.add_argument("--truth", type=_existing, required=True, metavar="DIR")
    verb.add_argument("--csv", type=Path, metavar="OUT", help="also write one row a picture")
    verb.add_argument("--label", choices=["ggo", "consolidation"], help="score one class only")
    verb.set_defaults(run=_evaluate)

    verb = verbs.add_parser("parity", help="compare the networks with recorded reference outputs")
    verb.add_argument("directory", type=_existing, metavar="DIR")
    verb.set_defaults(run=_parity)

    verb = verbs.add_parser("import-torch", help="turn a PyTorch checkpoint into ours")
    verb.add_argument("file", type=_existing, metavar="FILE")
    verb.add_argument("out", type=Path, metavar="OUT")
    verb.set_defaults(run=_import_torch)

    verb = verbs.add_parser("export", help="write a trained network as a small folder to pass on")
    verb.add_argument(
        "workdir",
        type=_existing,
        metavar="WORKDIR",
        help="the --workdir of a finished run of main.py, or an export of it",
    )
    verb.add_argument("out", type=Path, metavar="OUT", help="what predict --checkpoint takes too")
    verb.set_defaults(run=_export)

    verb = verbs.add_parser("bench", help="time the bare training steps on this machine")
    verb.add_argument("--backbone", default="resnet50", help="default: %(default)s")
    for name, default in (("batch", 4), ("size", 352), ("steps", 5)):
        verb.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help="default: %(default)s"
        )
    verb.set_defaults(run=_bench)

    verb = verbs.add_parser("predict", help="segment and score scans with a trained network")
    verb.add_argument(
        "inputs",
        type=_existing,
        nargs="+",
        metavar="INPUT",
        help="pictures, NIfTI volumes, DICOM folders or zips, or folders of them",
    )
    verb.add_argument(
        "--checkpoint",
        type=_existing,
        required=True,
        metavar="DIR",
        help="the --workdir of a finished run of main.py, or an export of it",
    )
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average eight views, with an uncertainty map (default: as the run did)",
    )
    verb.add_argument("--batch", type=int, default=0, metavar="N", help="slices at once")
    verb.add_argument("--device", choices=["cpu", "gpu", "tpu"], help="default: the fastest")
    verb.add_argument(
        "--lungs",
        default="morphology",
        metavar="WAY",
        help="morphology (the default), the --workdir of a run of configs/lung.py, "
        "or your own lung masks",
    )
    verb.add_argument("--lobes", type=_existing, metavar="PATH", help="your own lobe maps 1..5")
    verb.add_argument("--one-patient", action="store_true", help="all inputs are one patient's")
    verb.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="read back what this network has already written to --out",
    )
    verb.add_argument("--save-probabilities", action="store_true")
    verb.add_argument(
        "--keep-identifiers",
        action="store_true",
        help="let names, ids and dates pass from DICOM headers into DICOM-SEG",
    )
    verb.set_defaults(run=_predict)

    verb = verbs.add_parser("detect", help="tell infected patients of a labelled dataset")
    verb.add_argument(
        "--checkpoint",
        type=_existing,
        required=True,
        metavar="DIR",
        help="the --workdir of a finished run of main.py, or an export of it",
    )
    verb.add_argument(
        "--dataset",
        type=_existing,
        required=True,
        metavar="DIR",
        help="the version folder of a prepared dataset with labels, such as covid_ct",
    )
    verb.add_argument("--split", default="test", help="default: %(default)s")
    verb.add_argument(
        "--positive",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="labels that mean infected (default: covid or NCP)",
    )
    verb.add_argument(
        "--negative",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="labels that mean not infected (default: all others but unknown)",
    )
    verb.add_argument("--csv", type=Path, metavar="OUT", help="also write one row a patient")
    verb.add_argument(
        "--lungs", default="morphology", metavar="WAY", help="as in predict (default: %(default)s)"
    )
    verb.set_defaults(run=_detect)

    verb = verbs.add_parser("study", help="train and compare systems: tables, tests, figures")
    verb.add_argument(
        "--config",
        required=True,
        metavar="FILE[:PRESET]",
        help="such as configs/study.py; --config.KEY=VALUE changes a value of it",
    )
    verb.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="default: runs/<file>[-<preset>]; the same one resumes",
    )
    verb.set_defaults(run=_study)

    verb = verbs.add_parser("severity", help="score existing infection masks; no model is run")
    verb.add_argument("masks", type=_existing, nargs="+", metavar="MASK", help="files or folders")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    for name, what in (
        ("images", "the scans"),
        ("lung", "lung masks"),
        ("lobes", "lobe maps 1..5"),
        ("regions", "maps of 20 regions or segments"),
    ):
        verb.add_argument(f"--{name}", type=_existing, metavar="PATH", help=what)
    verb.add_argument("--one-patient", action="store_true", help="all are slices of one patient")
    verb.add_argument("--one-class", action="store_true", help="label 1 is any infection")
    verb.set_defaults(run=_severity)

    verb = verbs.add_parser("severity-study", help="hold predicted severity against true severity")
    verb.add_argument(
        "sources",
        type=_existing,
        nargs="+",
        metavar="SOURCE",
        help="prepared datasets, or folders with img/, label/ and lung/",
    )
    verb.add_argument("--checkpoint", type=_existing, metavar="DIR", help="a run that predicts; or")
    verb.add_argument("--masks", type=_existing, metavar="DIR", help="predicted masks")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument(
        "--lungs",
        default="morphology",
        metavar="WAY",
        help="for the prediction: true, or as in predict (default: %(default)s)",
    )
    verb.add_argument("--split", default="test", help="of prepared datasets (default: %(default)s)")
    verb.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average eight views (default: as the run did)",
    )
    verb.add_argument("--clinical", type=_existing, metavar="FILE", help="iCTCF's Patients.xlsx")
    verb.set_defaults(run=_severity_study)
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    from infnet_jax.verbs import evaluate as evaluation

    return evaluation.run(options.predictions, options.truth, csv=options.csv, label=options.label)


def _predict(options: argparse.Namespace) -> int:
    if options.device:  # read by jax when it is first imported
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(options.device, options.device)
    from infnet_jax.verbs import predict as scan_files

    return scan_files.run(
        options.inputs,
        checkpoint=options.checkpoint,
        out=options.out,
        lung_way=options.lungs,
        lobes=options.lobes,
        tta=options.tta,
        batch_size=options.batch,
        save_probabilities=options.save_probabilities,
        go_on=options.go_on,
        one_patient=options.one_patient,
        keep_identifiers=options.keep_identifiers,
    )


def _detect(options: argparse.Namespace) -> int:
    from infnet_jax.verbs import detect as screening

    return screening.run(
        options.checkpoint,
        options.dataset,
        options.split,
        positive=options.positive,
        negative=options.negative,
        csv=options.csv,
        lung_way=options.lungs,
    )


def _study(options: argparse.Namespace) -> int:
    from infnet_jax.config import load
    from infnet_jax.study import run as study

    words = ["infnet-jax", "study", f"--config={options.config}", *options.overrides]
    file, _, preset = options.config.partition(":")
    name = "-".join(filter(None, [Path(file).stem, preset]))
    words += [f"--workdir={options.workdir}"] if options.workdir else []
    return study.run(
        load(options.config, options.overrides),
        command=shlex.join(words),
        workdir=options.workdir or Path("runs") / name,
    )


def _severity(options: argparse.Namespace) -> int:
    from infnet_jax.verbs import severity as score_files

    return score_files.run(
        options.masks,
        out=options.out,
        images=options.images,
        lung=options.lung,
        lobes=options.lobes,
        regions=options.regions,
        one_patient=options.one_patient,
        one_class=options.one_class,
    )


def _severity_study(options: argparse.Namespace) -> int:
    from infnet_jax.verbs import severity_study

    return severity_study.run(
        options.sources,
        out=options.out,
        checkpoint=options.checkpoint,
        masks=options.masks,
        lung_way=options.lungs,
        split=options.split,
        tta=options.tta,
        table=options.clinical,
    )


def _parity(options: argparse.Namespace) -> int:
    from infnet_jax.verbs import parity

    return parity.report(options.directory)


def _import_torch(options: argparse.Namespace) -> int:
    from infnet_jax.weights import convert

    report = convert.import_torch(options.file, options.out)
    print(f"{options.out}: {report['network']}, {len(report['matched'])} tensors converted")
    for name, reason in report["unused"].items():
        print(f"  not used: {name} ({reason})")
    return 0


def _export(options: argparse.Namespace) -> int:
    from infnet_jax.verbs import export

    path = export.export(options.workdir, options.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from infnet_jax.verbs import bench

    return bench.report(options.backbone, options.batch, options.size, options.steps)


def _existing(text: str) -> Path:
    """A path that must exist; argparse turns the error into the usage line."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def _check_verb(parser: _Parser, word: str) -> None:
    """Names the nearest verb when the word is none."""
    verbs = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    if word not in verbs:
        near = difflib.get_close_matches(word, verbs, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(verbs)}"
        parser.error(f"no verb {word!r}; {hint}")


def _one_line(error: Exception) -> str:
    """The error's text without line breaks; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
