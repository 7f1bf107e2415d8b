"""Finds the files of the medseg sets below a folder, in whichever form they were downloaded."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from tfds_builders import archives, nifti

_NII = r"\.nii(\.gz)?$"
_VOLUME = re.compile(rf"(?:^|/)(rp_im|rp_msk|rp_lung_msk)/(\d+){_NII}", re.IGNORECASE)
_SLICES = {
    "tr_im": rf"(?:^|/)tr_im{_NII}",
    "tr_mask": rf"(?:^|/)tr_mask{_NII}",
    "tr_lung": rf"(?:^|/)tr_lung[^/]*{_NII}",
    "val_im": rf"(?:^|/)val_im{_NII}",
    "val_lung": rf"(?:^|/)val_lung[^/]*{_NII}",
}
_NPY = (
    "images_medseg",
    "masks_medseg",
    "test_images_medseg",
    "images_radiopedia",
    "masks_radiopedia",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One stack of slices with what belongs to it.

    Attributes:
      stack: `slices`, `unlabelled`, `all` (the npy form's volumes in one), or a volume's number.
      image, mask, lung: its files; mask and lung may be None.
    """

    stack: str
    image: archives.Member
    mask: archives.Member | None = None
    lung: archives.Member | None = None

    @property
    def is_npy(self) -> bool:
        """Tells the Kaggle arrays from NIfTI."""
        return self.image.name.endswith(".npy")


def find(root: Path, config: str, skip: Callable[[str, str], None]) -> list[Source]:
    """Lists the stacks of config `slices` or `volumes` below root, NIfTI before npy.

    Args:
      root: folder, with the files unpacked or in their zips.
      config: which set.
      skip: is told (file, reason) of what is of no use: broken zips, images without mask.

    Raises:
      FileNotFoundError: nothing of that set is there; the message says what is expected.
    """
    files: dict[str, archives.Member] = {}
    for member in archives.walk(root, limit=nifti.MAX_BYTES):
        if isinstance(member, ValueError):
            skip(str(member).split(": ")[0], str(member))
        elif role := _role(member):
            if role in files:
                skip(member.name, f"{files[role].name} is read in its place")
            else:
                files[role] = member
    found = _slices(files) if config == "slices" else _volumes(files, skip)
    if not found:
        raise FileNotFoundError(f"{root}: nothing of medseg/{config}; expected {EXPECTED[config]}")
    return found


EXPECTED = {
    "slices": "tr_im.nii.gz and tr_mask.nii.gz (or images_medseg.npy and masks_medseg.npy)",
    "volumes": "rp_im/1.nii.gz and rp_msk/1.nii.gz up to 9, in folders or in rp_im.zip and "
    "rp_msk.zip (or images_radiopedia.npy and masks_radiopedia.npy)",
}


def _role(member: archives.Member) -> str | None:
    """Names what a file is for: `tr_im`, `rp_msk/3`, `images_medseg`, ...; None for others."""
    if match := _VOLUME.search(member.name):
        return f"{match[1].lower()}/{int(match[2])}"
    for role, pattern in _SLICES.items():
        if re.search(pattern, member.name, re.IGNORECASE):
            return role
    stem = Path(member.name).stem.lower()
    return stem if member.name.lower().endswith(".npy") and stem in _NPY else None


def _slices(files: dict[str, archives.Member]) -> list[Source]:
    found = []
    if "tr_im" in files and "tr_mask" in files:
        found.append(Source("slices", files["tr_im"], files["tr_mask"], files.get("tr_lung")))
        if "val_im" in files:
            found.append(Source("unlabelled", files["val_im"], None, files.get("val_lung")))
    elif "images_medseg" in files and "masks_medseg" in files:
        found.append(Source("slices", files["images_medseg"], files["masks_medseg"]))
        if "test_images_medseg" in files:
            found.append(Source("unlabelled", files["test_images_medseg"]))
    return found


def _volumes(files: dict[str, archives.Member], skip: Callable[[str, str], None]) -> list[Source]:
    found = []
    for role in sorted(files, key=lambda role: (len(role), role)):
        folder, _, number = role.partition("/")
        if folder == "rp_im" and f"rp_msk/{number}" not in files:
            skip(files[role].name, f"has no mask; expected rp_msk/{number}.nii.gz")
        elif folder == "rp_im":
            found.append(
                Source(
                    number,
                    files[role],
                    files[f"rp_msk/{number}"],
                    files.get(f"rp_lung_msk/{number}"),
                )
            )
        elif folder == "rp_msk" and f"rp_im/{number}" not in files:
            skip(files[role].name, f"has no image; expected rp_im/{number}.nii.gz")
    if not found and "images_radiopedia" in files and "masks_radiopedia" in files:
        found.append(Source("all", files["images_radiopedia"], files["masks_radiopedia"]))
    return found
