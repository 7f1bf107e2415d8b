"""What the numbers of maps stand for: infection, lungs, lobes, sides; impossible ones refused."""

import cv2
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from infnet_jax import cli
from infnet_jax.clinic import case, imaging, labels, sides
from infnet_jax.clinic.imaging import classes, pictures
from infnet_jax.verbs import evaluate

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
BOTH, ONE = ("ggo", "consolidation"), ("infection",)


def chest(depth=6):
    """HU of a body with two lungs and a spine, and the lungs as sides: 1 the right one, 2."""
    z, y, x = np.mgrid[:depth, :64, :96]
    hu = np.full(z.shape, -1000, np.int16)
    hu[((x - 48) / 44) ** 2 + ((y - 32) / 27) ** 2 < 1] = 40
    lung = np.zeros(z.shape, np.uint8)
    for side, centre in ((1, 26), (2, 70)):
        lung[((x - centre) / 15) ** 2 + ((y - 32) / 18) ** 2 < 1] = side
    hu[lung > 0] = -850
    return hu, lung


HU, SIDES = chest()
HIGH = np.arange(6)[:, None, None] >= 3
FRONT = np.arange(64)[None, :, None] < 30
LOBES = np.where(SIDES == 2, np.where(HIGH, 1, 2), np.where(HIGH, 3, np.where(FRONT, 4, 5)))
LOBES = (LOBES * (SIDES > 0)).astype(np.uint8)
LESION = np.zeros_like(SIDES)
LESION[2:4, 30:40, 18:24], LESION[2:4, 30:34, 66:74] = 1, 2
LESION[2:4, 34:36, 66:74] = 1


def save(path, array):
    """A volume [D, H, W] as NIfTI, a slice [H, W] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 2:
        Image.fromarray(array).save(path)
    else:
        turned = np.ascontiguousarray(array.transpose(2, 1, 0))
        nib.save(nib.Nifti1Image(turned, AFFINE), path)
    return path


def scan(oriented=True):
    grid = imaging.Grid.plain(HU.shape)
    return imaging.Scan("s", "nifti", HU, True, oriented, (5.0, 2.0, 2.0), grid, None)


def severity(tmp_path, *words):
    code = cli.main(["severity", *map(str, words), "--out", str(tmp_path / "out")])
    return code, (tmp_path / "out" / "severity.json").read_text()


@pytest.mark.parametrize(
    "values, meaning, others, mask, kinds, warns",
    [
        ([0, 255], None, (), [0, 1], ONE, False),
        ([0, 1, 2, 3], None, (), [0, 1, 2, 0], BOTH, True),
        ([0, 2], None, (), [0, 2], BOTH, False),
        ([0, 1], None, (), [0, 1], ONE, True),
        ([0, 1], None, (0, 1, 2), [0, 1], BOTH, False),
        ([0], None, (2,), [0], BOTH, False),
        ([0], None, (), [0], ONE, False),
        ([0, 1], "1=ggo", (), [0, 1], BOTH, False),
        ([0, 1], "1=consolidation", (), [0, 2], BOTH, False),
        ([0, 1, 2, 3], "1=ignore,2=ignore,3=infection", (), [0, 0, 0, 1], ONE, False),
        ([0, 38, 75], "38=ggo, 75=consolidation", (), [0, 1, 2], BOTH, False),
    ],
)
def test_known_labels(values, meaning, others, mask, kinds, warns):
    meaning = labels.parse(meaning) if meaning else None
    found = labels.infection(np.array(values), "a.png", meaning=meaning, others=others)
    assert found[0].tolist() == mask and found[0].dtype == np.uint8
    assert found[1] == kinds and bool(found[2]) == warns


@pytest.mark.parametrize(
    "values, meaning, message",
    [
        ([0, 38], None, r"a\.png: labels \[0, 38\]; 0 to 3, or 0 and 255, .*--labels"),
        ([0, 1, 2, 3, 4, 5], None, r"a\.png: labels"),
        ([0, 127, 255], None, r"a\.png: labels"),
        ([0, 2], {1: "infection"}, r"labels \[0, 2\]; 0 and those that are named \(1=infection\)"),
    ],
)
def test_unknown_labels_are_refused(values, meaning, message):
    with pytest.raises(ValueError, match=message):
        labels.infection(np.array(values), "a.png", meaning=meaning)


@pytest.mark.parametrize(
    "text", ["", "1", "1=lung", "0=ggo", "256=ggo", "1=ggo,1=ggo", "1=ignore", "1=ggo,2=infection"]
)
def test_wrong_words_for_labels_are_refused(text):
    with pytest.raises(ValueError, match="--labels"):
        labels.parse(text)


CARVED = np.where(LESION > 0, 3, SIDES)  # lungs 1 and 2, infection 3
FIELD = np.where(LESION > 0, 1 + LESION, SIDES > 0).astype(np.uint8)  # lung 1, then two classes


@pytest.mark.parametrize(
    "labelled",
    [SIDES, np.where(SIDES > 0, 3 - SIDES, 0), CARVED, FIELD],
    ids=["lungs", "lungs, left first", "lungs and infection", "lung field"],
)
@pytest.mark.parametrize("with_lung", [False, True])
def test_maps_of_lungs_are_no_infection(labelled, with_lung, tmp_path, capsys):
    save(tmp_path / "m/a.nii.gz", labelled.astype(np.uint8)), save(tmp_path / "i/a.nii.gz", HU)
    words = [tmp_path / "m", "--images", tmp_path / "i"]
    if with_lung:
        words += ["--lung", save(tmp_path / "l/a.nii.gz", (SIDES > 0).astype(np.uint8))]
    code, text = severity(tmp_path, *words)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1 and '"infected_share"' not in text
    assert "a map of lungs or lobes?" in line and "--labels" in line and "a:" in line


def test_labels_that_somebody_named_are_scored_and_doubted(tmp_path):
    save(tmp_path / "m/a.nii.gz", CARVED), save(tmp_path / "i/a.nii.gz", HU)
    words = [tmp_path / "m", "--images", tmp_path / "i", "--labels"]
    code, text = severity(tmp_path, *words, "1=ignore,2=ignore,3=infection")
    share = (LESION > 0).sum() / (SIDES > 0).sum()
    assert code == 0 and f'"infected_share": {share:.2f}' in text and "lungs" not in text
    code, text = severity(tmp_path, *words, "1=ggo,2=consolidation,3=ignore")
    assert code == 0 and "a map of lungs or lobes?" in text


def test_a_whole_lung_and_a_stray_mark_are_scored_with_a_word():
    lung, stray = SIDES > 0, LESION.copy()
    found = case.assess(scan(), lung.astype(np.uint8), lung, classes=ONE, origin="guessed")
    assert found.tally.infected == found.tally.lung
    assert any("is the mask one of lungs" in line for line in found.warnings)
    assert any("-850 HU, as lung without infection" in line for line in found.warnings)
    stray[:, :4] = 1
    found = case.assess(scan(), stray, lung, origin="guessed")
    assert any("touch no lung" in line for line in found.warnings)
    plain = case.assess(scan(), LESION, lung, origin="guessed")
    assert not [line for line in plain.warnings if "HU" not in line]


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("image", [True, False])
def test_one_lung_is_not_cut_in_two(side, image):
    one = scan() if image else scan_of_mask()
    lung, mask = SIDES == side, np.where(SIDES == side, LESION, 0).astype(np.uint8)
    whole, alone = (case.assess(one, mask, lungs_) for lungs_ in (SIDES > 0, lung))
    assert set(np.unique(alone.regions)) == {0, *range(10 * side - 9, 10 * side + 1)}
    here = alone.regions > 0
    np.testing.assert_array_equal(alone.regions[here], whole.regions[here])
    assert f"only the {sides.NAMES[side]} lung" in alone.warnings[-1] and not any(
        "only" in line for line in whole.warnings
    )


def scan_of_mask():
    one = scan()
    one.kind, one.is_hu = "labels", False
    return one


def test_a_white_lung_has_no_region_and_a_small_one_keeps_its_side():
    sick = (SIDES == 2).astype(np.uint8)  # dense, so that no lung was found there
    found = case.assess(scan(), sick, SIDES == 1)
    assert not found.regions[sick > 0].any() and found.tally.regions[1, 0] == sick.sum()
    assert set(np.unique(found.regions[SIDES == 1])) == set(range(1, 11))
    assert "nor has 100 % of the infection" in found.warnings[-1]
    small = SIDES.copy()
    small[:, :27][small[:, :27] == 2] = small[:, 33:][small[:, 33:] == 2] = 0
    small[:, :, 64:][small[:, :, 64:] == 2] = 0
    share = (small == 2).sum() / (small > 0).sum()
    assert 0.02 < share < 0.1
    found = case.assess(scan(), np.zeros_like(SIDES), small > 0)
    assert ((found.regions > 10) == (small == 2)).all()


@pytest.mark.parametrize("first", [1, 10, 13])
def test_lobes_of_each_numbering(first):
    shifted = np.where(LOBES > 0, LOBES + first - 1, 0)
    np.testing.assert_array_equal(labels.standard_lobes(shifted), LOBES)
    assert not labels.check_lobes(LOBES, "s", 47.5)


RIGHT_FIRST = np.array([0, 4, 5, 1, 2, 3], np.uint8)[LOBES]
NO_LOBES = {  # what is said -> a map that is none of ours
    "wrong side": RIGHT_FIRST,
    "lie on the wrong side": SIDES,
    "lobe labels .13, 14.": np.where(SIDES == 2, np.where(HIGH, 13, 14), 0),
    "lobe labels .7.": (SIDES > 0) * 7,
    "no lung found": SIDES * 0,
    "an upper lobe lies below": LOBES[::-1],
    "lobe labels .1, 11": np.where(LOBES == 1, 1, LOBES + 9) * (LOBES > 0),
}


@pytest.mark.parametrize("message", NO_LOBES)
def test_lobes_that_cannot_be_are_refused(message):
    with pytest.raises(ValueError, match=message):
        case.assess(scan(), LESION, lobes=NO_LOBES[message])


@pytest.mark.parametrize("array", [LOBES, SIDES])
def test_lungs_and_lobes_are_no_map_of_regions(array):
    with pytest.raises(ValueError, match="s: regions .1, 2.*lungs or lobes"):
        case.assess(scan(), LESION, SIDES > 0, regions=array)
    one = np.where(SIDES == 1, LOBES - 2, 0).astype(np.uint8)
    assert case.assess(scan(), LESION, SIDES > 0, regions=one).tally.regions[0, 1:4].all()


def test_a_lobe_that_is_missing_is_said():
    found = case.assess(scan(), LESION, lobes=np.where(LOBES == 4, 0, LOBES))
    assert any("no right middle lobe" in line for line in found.warnings)
    left = case.assess(scan(), LESION * (SIDES == 2), lobes=np.where(LOBES > 2, 0, LOBES))
    assert any("no right upper, right middle, right lower lobe" in w for w in left.warnings)


RAMP = cv2.GaussianBlur((SIDES[0] > 0) * np.uint8(255), (3, 3), 0)


@pytest.mark.parametrize(
    "array, wanted",
    [
        ((SIDES > 0) * 7, SIDES > 0),
        (SIDES, SIDES > 0),
        (np.array([0, 128, 255])[SIDES], SIDES > 0),
        (LOBES + (LOBES > 0) * 9, SIDES > 0),
        (
            np.where((np.arange(96) == 50) & HIGH & FRONT, 5, np.where(SIDES, SIDES + 2, 0)),
            SIDES > 0,
        ),
        (RAMP, SIDES[0] > 0),
        (LOBES * 11, None),
        (np.arange(96)[None, :] * np.ones((64, 1), int), None),
    ],
    ids=["one", "two", "greys", "lobes", "with windpipe", "smooth", "organs", "a picture"],
)
def test_masks_of_lungs(array, wanted):
    if wanted is None:
        with pytest.raises(ValueError, match="a mask of lungs has one label"):
            labels.lungs(array, "l")
    else:
        found, _ = labels.lungs(array, "l")
        assert (found == wanted).mean() > 0.995


@pytest.mark.parametrize("kinds", [BOTH, ONE])
@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_our_masks_say_what_their_labels_are(kinds, suffix, tmp_path):
    if suffix == ".png":
        shown = np.interp(HU[0], [-1000, -850, 40], [0, 60, 220]).astype(np.uint8)
        source = save(tmp_path / "a.png", shown)
    else:
        source = save(tmp_path / "a.nii.gz", HU)
    (found,) = imaging.find([source])
    one = imaging.read(found)
    mask = np.zeros(one.values.shape, np.uint8)
    mask[:, 30:34, 20:24] = 1
    (path, *_), _ = imaging.write_mask(one, mask, tmp_path / "m", classes=kinds)
    assert classes.read(path) == dict(enumerate(kinds, start=1))
    np.testing.assert_array_equal(imaging.read_labels(path), mask)
    lung = (SIDES > 0).astype(np.uint8)
    lung = save(tmp_path / f"lung{suffix}", lung[0] if suffix == ".png" else lung)
    code, text = severity(tmp_path, path, "--lung", lung)
    assert code == 0 and ('"ggo_share": null' in text) == (kinds == ONE)
    assert "unknown kind" not in text


def test_masks_of_others_and_damaged_ones_say_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert classes.read(tmp_path / "a.png") == classes.read(tmp_path / "b.nii") == {}
    assert classes.read(save(tmp_path / "c.nii", LESION)) == {}
    path = tmp_path / "l.png"
    path.write_bytes(pictures.encode_mask(SIDES[0], ["lung"]))
    code, _ = severity(tmp_path, path, "--lung", path)
    assert code == 1


def test_label_1_alone_takes_its_kind_from_the_folder(tmp_path):
    for name, mask in (("a", LESION == 1), ("b", LESION)):
        save(tmp_path / f"m/{name}.nii", mask.astype(np.uint8))
        save(tmp_path / f"l/{name}.nii", (SIDES > 0).astype(np.uint8))
    words = ["--lung", tmp_path / "l"]
    _, both = severity(tmp_path, tmp_path / "m", *words)
    assert both.count('"ggo_share": 0.') == 2
    (tmp_path / "m/b.nii").unlink()
    _, alone = severity(tmp_path, tmp_path / "m", *words)
    assert '"ggo_share": null' in alone and "infection of unknown kind" in alone


def test_bits_are_one_class_and_a_white_zero_is_refused(tmp_path):
    Image.fromarray(LESION[2] > 0).save(tmp_path / "bits.png")
    assert classes.read(tmp_path / "bits.png") == {1: "infection"}
    for palette, right in (([0, 0, 0, 255, 255, 255], True), ([255, 255, 255, 0, 0, 0], False)):
        picture = Image.fromarray((LESION[2] > 0).astype(np.uint8))
        picture.putpalette(palette)
        picture.save(tmp_path / "p.png")
        if right:
            assert set(np.unique(imaging.read_labels(tmp_path / "p.png"))) == {0, 1}
        else:
            with pytest.raises(ValueError, match=r"p\.png: label 0 is shown white"):
                imaging.read_labels(tmp_path / "p.png")


def squares(folder, tables, name="{}.png"):
    """A picture for each table, from numbers 0, 1, 2 to grey levels."""
    plain = np.zeros((48, 48), np.uint8)
    plain[4:24, 4:24], plain[30:40, 30:40] = 1, 2
    for i, table in enumerate(tables):
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.array(table, np.uint8)[plain]).save(folder / name.format(i), quality=90)
    return folder


SURE = [(0, 255, 255)] * 3


@pytest.mark.parametrize(
    "maps, truth, name, message",
    [
        (SURE, [(0, 127, 255)] * 3, "{}.png", "truth: levels 0, 127, 255: classes"),
        (SURE, [(0, 255, 255), (0, 1, 1), (0, 255, 255)], "{}.png", "truth: levels 0, 1, 255"),
        (SURE, [(0, 100, 100), (0, 200, 200), (0, 0, 0)], "{}.png", "truth: levels 0, 100, 200"),
        ([*SURE[:2], (0, 1, 1)], SURE, "{}.png", "maps: levels 0, 1, 255"),
        ([(0, 127, 255)] * 3, SURE, "{}.png", "maps: levels 0, 127, 255"),
        (SURE, [(0, 127, 255)] * 3, "{}.jpg", r"0\.jpg: many pixels of about 12"),
    ],
)
def test_levels_of_a_folder_that_may_be_classes(maps, truth, name, message, tmp_path):
    maps, truth = squares(tmp_path / "maps", maps, name), squares(tmp_path / "truth", truth, name)
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate_maps(maps, truth)


@pytest.mark.parametrize(
    "maps, truth, label, words",
    [
        (SURE, SURE, None, None),
        (SURE, [(0, 127, 127)] * 3, None, None),
        (SURE, [(0, 1, 2)] * 3, None, None),
        (SURE, [(0, 38, 75)] * 3, None, None),
        ([(0, 38, 75)] * 3, [(0, 1, 2)] * 3, "ggo", None),
        ([(0, 127, 255)] * 3, [(0, 127, 255)] * 3, "ggo", "127=ggo,255=consolidation"),
        ([(0, 255, 0)] * 3, [(0, 127, 255)] * 3, "ggo", "127=ggo,255=consolidation"),
        ([(0, 255, 0)] * 3, [(0, 127, 255)] * 3, None, "127=infection,255=ignore"),
    ],
)
def test_levels_of_a_folder_that_are_known(maps, truth, label, words, tmp_path):
    maps, truth = squares(tmp_path / "maps", maps), squares(tmp_path / "truth", truth)
    meaning = labels.parse(words) if words else None
    rows, _ = evaluate.evaluate_maps(maps, truth, label, meaning)
    assert [row["raw_dice"] for row in rows] == [1.0] * 3


def test_nearly_blank_maps_among_others_are_named(tmp_path):
    maps, truth = squares(tmp_path / "maps", SURE), squares(tmp_path / "truth", SURE)
    ramp = np.linspace(0, 255, 48 * 48).reshape(48, 48).astype(np.uint8)
    Image.fromarray(ramp).save(maps / "0.png")
    Image.fromarray(ramp // 128).save(maps / "1.png")
    _, summary = evaluate.evaluate_maps(maps, truth)
    assert "1.png: nothing above 3" in evaluate.format_table(summary)
