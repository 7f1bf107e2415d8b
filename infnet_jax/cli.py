"""The command line: `infnet-jax VERB ...`. Only the chosen verb's file is imported."""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from infnet_jax import __version__

USAGE_ERROR, FAILURE = 2, 1
# A verb is the file of its name in infnet_jax/verbs, with `add_arguments(parser)` and
# `run(options) -> exit code`. What is slow to import, such as jax, waits until `run`.
VERBS = {
    "evaluate": "score predicted masks against true ones",
    "parity": "compare the networks with recorded reference outputs",
    "import-torch": "turn a PyTorch checkpoint into ours",
    "export": "write a trained network as a small folder to pass on",
    "bench": "time the bare training steps on this machine",
    "predict": "segment and score scans with a trained network",
    "detect": "tell infected patients of a labelled dataset",
    "study": "train and compare systems: tables, tests, figures",
    "severity": "score existing infection masks; no model is run",
    "severity-study": "hold predicted severity against true severity",
}


class _Parser(argparse.ArgumentParser):
    """Answers a wrong call with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Prints what was wrong and where help is; exits with 2."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb of the words after the program's name and returns the exit code.

    It is 0, or what the verb returns; 1 if it fails on what it was given (ValueError, missing
    file: one line on stderr). A wrong call or a missing path exits with 2 (SystemExit).
    """
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough: no error, and no second flush at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"infnet-jax {options.verb}: {line}", file=sys.stderr)
    return FAILURE


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the options of a call, with `verb`, its name, and `run`, its function.

    SystemExit is 2 after one line on stderr, for a wrong call; 0 after --help and --version.
    """
    parser = _Parser(prog="infnet-jax", description="The command line of infnet_jax.")
    parser.add_argument("--version", action="version", version=f"infnet-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for verb, text in VERBS.items():
        one = verbs.add_parser(verb, help=text)
        if verb == chosen:
            module = importlib.import_module(f"infnet_jax.verbs.{verb.replace('-', '_')}")
            module.add_arguments(one)
            one.set_defaults(run=module.run)
    if chosen is not None and chosen not in VERBS:
        near = difflib.get_close_matches(chosen, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}"
        parser.error(f"no verb {chosen!r}; {hint}")
    options, more = parser.parse_known_args(words)
    if "overrides" in options:  # --config.KEY=VALUE, whose keys only a config knows
        options.overrides = [word for word in more if word.startswith("--config.")]
        more = [word for word in more if word not in options.overrides]
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
