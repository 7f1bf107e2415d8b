"""What our mask files say of their labels: `1=ggo,2=consolidation`, in a field of the format."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
from PIL import Image

KEY = "infnet-jax labels"  # of a text chunk of PNG; the start of the description of NIfTI


def text(classes: Iterable[str]) -> str:
    """The words for the classes of labels 1, 2, ...; NIfTI has room for 80 characters with KEY."""
    return ",".join(f"{label}={code}" for label, code in enumerate(classes, start=1))


def of_header(classes: Iterable[str]) -> str:
    """The description for the header of a NIfTI mask of these classes."""
    return f"{KEY}: {text(classes)}"


def read(path: Path) -> dict[int, str]:
    """The class of each label of a mask file, by its own words or bits; empty if it has none."""
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            header: Any = nib.load(path).header
            field = header["descrip"].item().decode("ascii", "replace")
            found = field.removeprefix(f"{KEY}: ") if field.startswith(KEY) else ""
        else:
            with Image.open(path) as picture:
                bits = picture.mode == "1"  # room for one class only
                found = "1=infection" if bits else str(picture.info.get(KEY, ""))
        pairs = [pair.partition("=") for pair in found.split(",") if pair]
        return {int(number): code for number, _, code in pairs}
    except Exception:  # a damaged file is named by whoever reads its labels
        return {}
