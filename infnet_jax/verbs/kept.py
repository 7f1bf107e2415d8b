"""What an output folder holds of earlier runs, so that nothing in it is stale, lost or mixed up."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax.clinic import case, imaging, page, severity
from infnet_jax.files import write_json
from infnet_jax.verbs.inputs import FINISHED


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keeps a folder, which is made, for one run of `predict` at a time.

    ValueError if another one is writing to it, or it has masks that `predict` did not write.
    """
    strange = (out / "masks").is_dir() and any((out / "masks").iterdir())
    if strange and not (out / FINISHED).is_dir():
        raise ValueError(f"{out / 'masks'} has files that predict did not write; use another --out")
    (out / FINISHED).mkdir(parents=True, exist_ok=True)
    with (out / FINISHED / "lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it with the file
        except ImportError:  # Windows
            pass
        except OSError:
            raise ValueError(f"{out}: another run is writing there; wait for it") from None
        yield


def digest(source: imaging.Source) -> str:
    """A sha256 of a scan's files and, of a DICOM series, of what slices belong to it."""
    total = hashlib.sha256()
    for path in sorted(source.files):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    for one in source.slices:
        total.update(str(one.header.get("SOPInstanceUID", "")).encode())
    return total.hexdigest()


def digest_of_map(labels: np.ndarray | None) -> str:
    """A short digest of a label map, "" for None."""
    if labels is None:
        return ""
    return hashlib.sha256(np.ascontiguousarray(labels, np.uint8).tobytes()).hexdigest()[:16]


def check(
    out: Path, sources: Sequence[imaging.Source], mine: Mapping[str, Any], *, go_on: bool
) -> dict[str, str]:
    """Looks, before anything is run, whether this run may write to `out`.

    Args:
      mine: what the masks depend on beside the scan; `go_on`: those that are there are wanted.

    Returns:
      The names of scans that may not, with a line each: another scan of that name is there, or a
      mask that another hand has changed since.

    Raises:
      ValueError: `go_on`, and a mask of another model.
    """
    refused: dict[str, str] = {}
    for source in sources:
        before = _record(out, source.name)
        if before is None:
            continue
        if go_on and {name: before.get(name) for name in mine} != mine:
            raise ValueError(
                f"{source.name}: {out} has a mask of another model or other lungs; "
                "use another --out"
            )
        if changed := _changed(out, before):
            refused[source.name] = (
                f"{changed} was changed since it was written; score it with the verb severity, or "
                "remove it to have it made anew"
            )
        known = before.get("input", "")  # earlier versions did not note it
        if known and before.get("place") != place(source) and known != digest(source):
            refused[source.name] = (
                f"{source.files[0]}: {out} has another scan named {source.name}; "
                "use another --out, or another name"
            )
    return refused


def place(source: imaging.Source) -> str:
    """A short digest of where a scan lies: a path itself may name a person."""
    path = source.files[0].parent if len(source.files) > 1 else source.files[0]
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def finished(out: Path, name: str, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a scan whose mask is there, whole, and made of what is `wanted`; else None."""
    record = _record(out, name)
    if record is None or any(record.get(key) != value for key, value in wanted.items()):
        return None
    sums = {out / "masks" / file: right for file, right in record["files"].items()}
    return record if all(p.exists() and _sha(p) == right for p, right in sums.items()) else None


def finish(out: Path, name: str, files: Sequence[Path], record: Mapping[str, Any]) -> None:
    """Notes that the mask of a scan is written, with what it was made of."""
    sums = {path.name: _sha(path) for path in files}
    write_json(out / FINISHED / f"{name}.json", {**record, "file": files[0].name, "files": sums})


def forget(out: Path, name: str) -> None:
    """Removes what an earlier run made of a scan, as it is done again or could not be read."""
    record = _record(out, name)
    (out / FINISHED / f"{name}.json").unlink(missing_ok=True)
    for file, right in (record or {}).get("files", {}).items():
        path = out / "masks" / Path(file).name
        if path.exists() and _sha(path) == right:  # one that was changed is the user's
            path.unlink()
    if record:
        (out / "probabilities" / f"{name}.npz").unlink(missing_ok=True)


def patients(
    out: Path, names: Collection[str], patient: str | None, model: Mapping[str, str]
) -> list[case.Patient]:
    """The patients of earlier runs that this one leaves as they are, from `severity.json`.

    Args:
      names: of the scans that are done now; patient: whose they all are, or None.

    Raises:
      ValueError: some scans of a patient are done now and others are not; other scans were scored
        with another model; or what is there cannot be read.
    """
    file = out / "severity.json"
    if not file.exists():
        return []
    try:
        document = json.loads(file.read_text("utf-8"))
        before = [
            case.Patient(p["patient"], p["scans"], severity.Severity(**p["scores"]), p["warnings"])
            for p in document["patients"]
        ]
        other = document["model"] != dict(model)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: not readable; remove it or use another --out") from None
    stay = []
    for one in before:
        absent = sorted(set(one.scans) - set(names))
        if absent and (one.name == patient or len(absent) < len(one.scans)):
            raise ValueError(
                f"{out}: patient {one.name} has other scans too ({', '.join(absent[:3])}); "
                "give them all, with --continue, or use another --out"
            )
        if absent:
            stay.append(one)
    if stay and other:
        raise ValueError(
            f"{out}: {stay[0].name} and others there come from another model or other lungs; "
            "use another --out"
        )
    names_there = page.names(out / "report.html", [one.name for one in stay])
    if lost := [one.name for one in stay if one.name not in names_there]:
        raise ValueError(f"{out / 'report.html'}: {lost[0]} is not in it; use another --out")
    return stay


def unscored(out: Path, known: Collection[str]) -> list[str]:
    """Scans that a run broke off has left a mask of, but no scores: not among those `known`."""
    return sorted(path.stem for path in (out / FINISHED).glob("*.json") if path.stem not in known)


def _record(out: Path, name: str) -> dict[str, Any] | None:
    try:
        record = json.loads((out / FINISHED / f"{name}.json").read_text("utf-8"))
    except (OSError, ValueError):  # not there, or cut off
        return None
    return record if isinstance(record, dict) else None


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _changed(out: Path, record: Mapping[str, Any]) -> Path | None:
    """A mask that is not the one which was written, and yet can be read; None if there is none."""
    for file, right in record.get("files", {}).items():
        path = out / "masks" / file
        if path.exists() and path.suffix != ".dcm" and _sha(path) != right:
            try:
                imaging.read_labels(path)
            except ValueError:  # spoilt, and to be made anew
                continue
            return path
    return None
