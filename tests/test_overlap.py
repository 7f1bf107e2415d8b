"""Near-identical slices between prepared datasets: copies are found, other patients are not."""

import cv2
import numpy as np
import pytest
from PIL import Image

import tfds_builders
from tfds_builders import __main__ as command, alignment, hashing, overlap
from tfds_builders.ictcf import dummy_data
from tfds_builders.phantom.phantom_dataset_builder import make_patient


class Made:
    """Slices in memory, with the face of `overlap.Slices`."""

    def __init__(self, folder, pictures):
        self.folder, self._pictures = folder, list(pictures.values())
        self.slices = [overlap.Slice("all", i, name, name) for i, name in enumerate(pictures)]

    def picture(self, number):
        return self._pictures[number]


@pytest.fixture(scope="module")
def chests():
    """One slice of each of twelve phantoms, of different heights."""
    slices = {}
    for patient in range(12):
        made = list(make_patient(5, patient, n_slices=3, size=160))
        slices[f"patient{patient}"] = made[patient % 3]["image"]
    return slices


def copy(picture, rng):
    """Moves by up to 6 %, zooms by up to 10 %, rescales, and saves as a poor JPG."""
    h, w = picture.shape
    zoom, (down, right) = rng.uniform(0.9, 1.1), rng.uniform(-0.06, 0.06, 2)
    rest = (1 - zoom) / 2
    warp = np.float32([[zoom, 0, (rest + right) * w], [0, zoom, (rest + down) * h]])
    moved = cv2.warpAffine(picture, warp, (w, h))
    scale = rng.uniform(0.6, 1.4)
    moved = cv2.resize(moved, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    jpg = cv2.imencode(".jpg", moved, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))])[1]
    return cv2.imdecode(jpg, cv2.IMREAD_GRAYSCALE)


def test_planted_copies_are_found_and_nothing_else(chests):
    rng = np.random.default_rng(0)
    names = list(chests)
    second = {f"copy of {n}": copy(chests[n], rng) for n in names[:8]}
    second |= {f"{n} alone": chests[n] for n in names[8:10]}
    first = Made("a", {n: chests[n] for n in names if n not in names[8:10]})
    pairs = overlap.overlap(first, Made("b", second), least=0.9)  # phantoms share more than people
    right = {(p.id_a, p.id_b) for p in pairs if p.id_b == f"copy of {p.id_a}"}
    assert len(right) == 8 and len(pairs) == 8, pairs
    turned = overlap.overlap(Made("b", dict(list(second.items())[:3])), first, least=0.9)
    assert {(p.id_b, p.id_a) for p in turned} == {(n, f"copy of {n}") for n in names[:3]}


def test_with_itself_each_pair_comes_once(chests):
    names = list(chests)[:4]
    twin = {"twin": copy(chests[names[1]], np.random.default_rng(1))}
    made = Made("a", {n: chests[n] for n in names} | twin)
    pairs = overlap.overlap(made, made, least=0.9)
    assert [(p.id_a, p.id_b) for p in pairs] == [(names[1], "twin")]
    assert overlap.overlap(made, Made("b", {})) == []


def test_likeness_by_extremes(chests):
    one, other = (alignment.cut(chests[n], alignment.WHOLE) for n in ("patient0", "patient1"))
    assert alignment.likeness(one, one) == pytest.approx(1, abs=1e-3)
    assert alignment.likeness(one, other) < 0.6
    assert alignment.likeness(one, np.zeros_like(one)) == -1


def test_cut_by_hand():
    picture = np.zeros((100, 200), np.uint8)
    picture[50:, 100:] = 200
    quarter = alignment.cut(picture, (0.5, 0.5, 0.5, 0.5), 10)
    assert quarter.shape == (10, 10) and (quarter == 200).all()
    beyond = alignment.cut(picture, (0.5, 0.5, 1.0, 1.0), 10)  # half of it is off the picture
    assert (beyond[:5, :5] == 200).all() and not beyond[6:].any() and not beyond[:, 6:].any()
    before = alignment.cut(picture, (-1.0, -1.0, 2.0, 2.0), 8)
    assert not before[:6].any() and (before[6:, 6:] == 200).all()


def test_hashes_survive_coding_and_tell_pictures_apart(chests):
    one, other = chests["patient0"], chests["patient4"]
    jpg = cv2.imdecode(cv2.imencode(".jpg", cv2.resize(one, (240, 240)))[1], 0)

    def bits(a, b):
        a, b = hashing.perceptual_hash(a), hashing.perceptual_hash(b)
        return int(np.bitwise_count(a ^ b).sum())

    assert bits(one, jpg) < 12 < 40 < bits(one, other)
    assert not hashing.perceptual_hash(np.full((50, 60), 77, np.uint8)).any()


def test_near_pairs_by_hand():
    a = np.array([[0, 0], [7, 1]], np.uint64)
    b = np.array([[1, 0], [7, 1], [255, 255]], np.uint64)
    assert list(hashing.near_pairs(a, b, 3)) == [(0, 0, 1), (1, 0, 3), (1, 1, 0)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, chests):
    pytest.importorskip("openpyxl")
    root = tmp_path_factory.mktemp("prepared")
    (root / "s/pCT").mkdir(parents=True)
    for name in list(chests)[:3]:
        Image.fromarray(chests[name]).save(root / f"s/pCT/{name}x.jpg")
    dummy_data.write_patient(root / "s/pCT", 50, packed=False)
    tfds_builders.prepare("ictcf/slices", data_dir=root / "data", manual_dir=root / "s")
    return root / "data"


def test_the_command(prepared, capsys):
    folder = next(prepared.glob("ictcf/slices/*.*.*"))
    for name in ("ictcf/slices", "ictcf", str(folder)):
        assert command.main(["overlap", name, str(folder), "--data_dir", str(prepared)]) == 0
        out, err = capsys.readouterr()
        assert out == "" and "0 near-identical pairs between 5 and 5 slices" in err


@pytest.mark.parametrize(
    ("what", "words"),
    [("nothing", "no prepared dataset of that name"), ("ictcf:dev", "no split 'dev'; there are:")],
)
def test_command_errors_are_one_line(what, words, prepared, capsys):
    assert command.main(["overlap", what, "ictcf", "--data_dir", str(prepared)]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_the_command_knows_the_default(monkeypatch):
    asked = []
    monkeypatch.setattr(overlap, "open_prepared", lambda *a: Made("a", {}))
    monkeypatch.setattr(overlap, "overlap", lambda a, b, least: asked.append(least) or [])
    command.main(["overlap", "a", "b"])
    assert asked == [overlap.LEAST]


def test_real_near_duplicates(shared):
    folder = shared / "data/COVID-SemiSeg-lungs/img"
    if not folder.is_dir():
        pytest.skip("no COVID-SemiSeg-lungs")

    def made(name, stems):
        pictures = {s: cv2.imread(str(folder / f"{s}.png"), 0).T for s in stems.split()}
        return Made(name, {s: np.ascontiguousarray(a) for s, a in pictures.items()})

    train = made("train", "5 10 17 43 46 0 1 2 3 11 12 13")
    pairs = {(p.id_a, p.id_b) for p in overlap.overlap(train, made("test", "91 93 6 7 8 9"))}
    assert {("5", "93"), ("17", "91"), ("46", "93")} <= pairs
    assert {b for _, b in pairs} == {"91", "93"}
    assert ("10", "43") in {(p.id_a, p.id_b) for p in overlap.overlap(train, train)}
