"""Frames and padding are no part of a picture; what is no chest is questioned or refused."""

import cv2
import numpy as np
import pytest

from infnet_jax.clinic import case, imaging, lungs, plausible
from infnet_jax.dice import dice
from tests.scans import chest
from tfds_builders.phantom.phantom_dataset_builder import make_patient

FRAMES = [(width, level) for width in (1, 3, 12, 25) for level in (0, 128, 255)]


def _phantom():
    """A slice of a drawn patient, uint8 [H, W]."""
    _, middle, _ = make_patient(1, 0, n_slices=3, size=128)
    return np.asarray(middle["image"], np.uint8).reshape(128, 128)


@pytest.mark.parametrize(("width", "level"), FRAMES)
def test_a_frame_moves_no_lung(width, level):
    for picture in (_phantom(), np.ascontiguousarray(chest()[18:78, 8:88])):
        around = cv2.copyMakeBorder(picture, *(width,) * 4, cv2.BORDER_CONSTANT, value=level)
        inside = np.s_[width:-width, width:-width]
        found, plain = lungs.segment(around), lungs.segment(picture)
        assert plain.any() and dice(found[inside], plain) > 0.95
        assert found.sum() == found[inside].sum()


def test_air_around_a_body_is_no_frame():
    picture = np.full((100, 120), 7, np.uint8)
    cv2.ellipse(picture, (60, 50), (50, 38), 0, 0, 360, 200, -1)
    assert plausible.without_frame(picture) == (slice(0, 100), slice(0, 120))


def _scan(pictures, spacing=(5.0, 1.0, 1.0)):
    grid = imaging.Grid.plain(pictures.shape)
    return imaging.Scan("a", "nifti", pictures, False, True, spacing, grid, None)


def _head(n):
    """A round body with small air cells, as the sinuses of a head."""
    y, x = np.mgrid[:128, :128] - 64
    picture = np.where(x**2 + y**2 < 55**2, 180, 0)
    for centre in (-9, 9):
        picture[(x - centre) ** 2 + (y + 20) ** 2 < 25] = 20
    return np.repeat(picture[None].astype(np.uint8), n, 0)


def test_another_part_of_the_body_is_refused():
    scan = _scan(_head(4))
    blank = np.zeros(scan.values.shape, np.uint8)
    with pytest.raises(ValueError, match="a: lungs fill at most 1.* no chest"):
        case.assess(scan, blank)
    (said,) = case.assess(_scan(_head(1)), blank[:1]).warnings
    assert "no chest" in said
    own = _head(4) == 20
    assert not case.assess(scan, blank, own).warnings  # the user's own lungs are believed


def test_air_outside_taken_for_lung_is_said():
    pictures = np.stack([chest()] * 3)
    lung = pictures < 100
    (said,) = plausible.doubts(pictures, lung, None)
    assert "lungs look wrong" in said and "of its edge" in said
    assert plausible.doubts(pictures, lungs.segment(pictures), None) == []


def test_a_whole_chest_has_litres_of_lung():
    pictures = np.stack([chest()] * 40)
    lung = lungs.segment(pictures)
    (said,) = plausible.doubts(pictures, lung, (5.0, 0.9, 0.9))
    assert f"only {lung.sum() * 4.05 / 1000:.0f} ml of lung" in said
    assert not plausible.doubts(pictures, lung, (5.0, 3.0, 3.0))
    assert not plausible.doubts(pictures[:9], lung[:9], (5.0, 1.0, 1.0))  # a part of a chest


def _changed(picture):
    """Ways in which slices reach us -> the picture, and the way back of a map on its grid."""
    for width, level in ((3, 255), (12, 255), (3, 0), (12, 0), (5, 128), (60, 0)):
        inside = np.s_[width:-width, width:-width]
        around = cv2.copyMakeBorder(picture, *(width,) * 4, cv2.BORDER_CONSTANT, value=level)
        yield f"frame {width} {level}", around, lambda m, inside=inside: m[inside]
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 60])
    text = cv2.putText(picture.copy(), "R  IM 12", (4, 14), 0, 0.4, 255, 1)
    yield "JPEG", cv2.imdecode(data, 0), lambda m: m
    yield "caption", text, lambda m: m
    yield "mirrored", np.ascontiguousarray(picture[:, ::-1]), lambda m: m[:, ::-1]
    yield "turned", np.ascontiguousarray(np.rot90(picture)), lambda m: np.rot90(m, -1)


@pytest.mark.slow
def test_real_slices_as_people_save_them(shared):
    """The share of the true masks stays within a tenth on 95 of 100, with a word on the others."""
    folder = shared / "data" / "COVID-SemiSeg-lungs"
    good, said, total = 0, 0, 0
    for path in sorted((folder / "img").iterdir()):
        picture = cv2.imread(str(path), 0)
        truth = cv2.imread(str(folder / "label" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED) > 0
        plain = truth.sum() / (lungs.segment(picture) | truth).sum()
        for _, changed, back in _changed(picture):
            lung = lungs.segment(changed)
            share = truth.sum() / (back(lung) | truth).sum()
            total += 1
            if abs(share - plain) <= 0.1 * plain:
                good += 1
            else:
                said += not lung.any() or bool(plausible.doubts(changed[None], lung[None], None))
    assert good >= 0.95 * total and good + said == total, (good, said, total)
