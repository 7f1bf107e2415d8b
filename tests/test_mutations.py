"""Two thousand spoilt files, over all builders: each is read rightly or skipped with a reason."""

import gzip
import io
import json
import re
import shutil
import zipfile

import cv2
import nibabel
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import tfds_builders
from tfds_builders import shard_writers
from tfds_builders.covid_semiseg import dummy_data as semiseg_data
from tfds_builders.medseg import dummy_data as medseg_data

SIDE = 24
MUTATED = {  # how many mutated inputs each builder gets; every test counts its own
    "cc_ccii/slices": 810,
    "cc_ccii/lesions": 620,
    "cc_ccii archives": 20,
    "covid_ct": 270,
    "ictcf/patients": 180,
    "ictcf/slices": 90,
    "covid_chestxray/xray": 360,
    "covid_chestxray/ct_volume": 50,
    "medseg/volumes": 42,
    "covid_semiseg": 24,
}


def encoded(array, kind="png", mode="L"):
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(
        buffer, kind, **({"lossless": True} if kind == "webp" else {})
    )
    return buffer.getvalue()


def flip(rng, array, data):
    data = bytearray(data)
    for place in rng.integers(0, len(data), rng.choice([1, 3, 30])):
        data[place] ^= int(rng.integers(1, 256))
    return bytes(data)


def insert(rng, array, data):
    place = int(rng.integers(0, len(data)))
    return data[:place] + rng.bytes(9) + data[place:]


def larger(rng, array, data):
    return encoded(np.kron(array, np.ones((2, 2), np.uint8)))


MUTATIONS = {  # name -> (what to do with the bytes, what is read of it, None: either or nothing)
    "flip": (flip, None),
    "insert": (insert, None),
    "truncate": (lambda rng, array, data: data[: int(rng.integers(0, len(data)))], None),
    "noise": (lambda rng, array, data: rng.bytes(200), None),
    "empty": (lambda rng, array, data: b"", None),
    "webp": (lambda rng, array, data: encoded(array, "webp"), lambda a: a),
    "rgb": (lambda rng, array, data: encoded(array, mode="RGB"), lambda a: a),
    "alpha": (lambda rng, array, data: encoded(array, mode="RGBA"), lambda a: a),
    "larger": (larger, lambda a: np.kron(a, np.ones((2, 2), np.uint8))),
    "none": (lambda rng, array, data: data, lambda a: a),
}
NAMES = list(MUTATIONS)


def test_they_are_two_thousand():
    assert sum(MUTATED.values()) >= 2000
    assert {name.split("/")[0].split()[0] for name in MUTATED} == {*tfds_builders.NAMES} - {
        "phantom",
        "folders",
    }  # one reads nothing, the other stops at the first such file


class Spoiler:
    """Makes random pictures and what a mutation leaves of their files; counts the mutated ones."""

    def __init__(self, seed):
        self.rng, self.mutated, self.wanted = np.random.default_rng(seed), 0, {}

    def __call__(self, key, number, array=None):
        """The bytes for a file; `wanted[key]` is then what may be read of it, and may it fail."""
        if array is None:
            array = self.rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        how = NAMES[number % len(NAMES)]
        mutate, expected = MUTATIONS[how]
        self.mutated += how != "none"
        self.wanted[key] = array if expected is None else expected(array), expected is None
        return mutate(self.rng, array, encoded(array))

    def check(self, found, reasons):
        """Each is read as it was, or there is a reason; most damage shows. `reasons`: by key."""
        survivors = 0
        for key, (array, may_fail) in self.wanted.items():
            assert (key in found) != bool(reasons.get(key)), key
            assert may_fail or key in found, (key, reasons.get(key))
            if key in found:
                assert same(found[key]["image"][..., 0], array), key
                survivors += may_fail
        assert set(found) <= set(self.wanted) and survivors < 0.07 * len(self.wanted)


def build(name, source, tmp_path):
    folder = tfds_builders.prepare(name, data_dir=tmp_path / "data", manual_dir=source)
    builder = tfds.builder_from_directory(folder)
    found = {
        e["id"].decode(): e for s in builder.info.splits for e in builder.as_data_source(split=s)
    }
    return found, json.loads((folder / "report.json").read_text())["skipped"]


def same(read, array):
    return read.shape == array.shape and (read == array).all()


def test_slices_of_cc_ccii(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writers, "_cores", lambda: 1)
    spoil, source = Spoiler(0), tmp_path / "source"
    source.mkdir()
    with zipfile.ZipFile(source / "CP-1.zip", "w") as archive:
        for number in range(900):
            name = f"CP/{number // 100}/{number // 20}/{number:04d}"
            archive.writestr(f"{name}.png", spoil(name, number))
    found, skipped = build("cc_ccii/slices", source, tmp_path)
    spoil.check(found, {file[len("CP-1.zip/") : -len(".png")]: r for file, r in skipped.items()})
    assert spoil.mutated == MUTATED["cc_ccii/slices"]


def test_masks_of_the_lesion_set_stay_in_step(tmp_path):
    rng, source = np.random.default_rng(1), tmp_path / "source"
    source.mkdir()
    names, wanted, mutated = NAMES, {}, 0
    with zipfile.ZipFile(source / "ct_lesion_seg.zip", "w") as archive:
        for number in range(340):
            array = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            classes = rng.integers(0, 4, (SIDE, SIDE), dtype=np.uint8)
            how = names[number % len(names)], names[number // len(names) % len(names)]
            parts = [("image", array, how[0]), ("mask", classes, how[1])]
            if number >= 300:  # swapped: labels are no grey levels
                how, parts = "swapped", [("mask", array, "none"), ("image", classes, "none")]
            mutated += 2 if how == "swapped" else sum(word != "none" for word in how)
            for part, picture, mutation in parts:
                data = MUTATIONS[mutation][0](rng, picture, encoded(picture))
                archive.writestr(f"{part}/{number // 5}/{number}.png", data)
            wanted[f"{number // 5}/{number}"] = how, array, classes
    found, skipped = build("cc_ccii/lesions", source, tmp_path)
    for name, (how, array, classes) in wanted.items():
        reasons = [r for part in ("image", "mask") if (r := skipped.get(f"{part}/{name}.png"))]
        assert (name in found) != bool(reasons), (name, how)
        assert how != "swapped" or "label values" in reasons[0]
        if name not in found:
            continue
        example = found[name]
        assert example["mask"].shape == example["image"].shape == example["lung"].shape
        # Both as they were, or both enlarged: nothing else is in step.
        scale = np.ones((2, 2) if example["image"].shape[0] > SIDE else (1, 1), np.uint8)
        assert same(example["image"][..., 0], np.kron(array, scale)), how
        truth = np.array([0, 0, 1, 2], np.uint8)[np.kron(classes, scale)]
        assert same(example["mask"][..., 0], truth), how
    # Of ten mutations four keep the picture and its size, and `larger` fits itself alone: 4 x 4 + 1
    # in a hundred, and what damage leaves whole.
    assert 51 <= len(found) < 66
    assert mutated == MUTATED["cc_ccii/lesions"]


def test_pictures_of_covid_ct(tmp_path):
    """Every eleventh is renamed: then it is in no split file, and its own name is missing."""
    spoil, source, lines = Spoiler(2), tmp_path / "source", {}
    (source / "Images-processed").mkdir(parents=True)
    archives = {
        label: zipfile.ZipFile(source / f"Images-processed/CT_{label}.zip", "w")
        for label in ("COVID", "NonCOVID")
    }
    for number in range(300):
        label, split = ("COVID", "NonCOVID")[number % 2], ("train", "val", "test")[number // 2 % 3]
        file = f"{number}.png"
        key = f"{'covid' if label == 'COVID' else 'non_covid'}/{file}"
        lines.setdefault((label, split), []).append(file)
        data = spoil(key, number // 6)
        if number % 11 == 0:
            spoil.wanted[key] = None, True
            spoil.mutated += number // 6 % len(NAMES) == NAMES.index("none")
        archives[label].writestr(f"{'new' if number % 11 == 0 else ''}{file}", data)
    for archive in archives.values():
        archive.close()
    for (label, split), files in lines.items():
        path = source / f"Data-split/{label}/{split}CT_{label}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(files))
    found, skipped = build("covid_ct", source, tmp_path)
    reasons = {
        f"{'non_' if 'NonCOVID' in file else ''}covid/{file.rpartition('/')[2]}": reason
        for file, reason in skipped.items()
    }
    renamed = [key for key in reasons if "/new" in key]
    assert len(renamed) == 28 and all("in no split" in reasons.pop(key) for key in renamed)
    assert all(f"{p}covid/{n}.png" not in found for n in range(0, 300, 11) for p in ("", "non_"))
    spoil.check(found, reasons)
    assert spoil.mutated >= MUTATED["covid_ct"]


def test_patients_of_ictcf(tmp_path):
    """Every tenth archive member lies in a folder of another patient: whose is it?"""
    spoil, source = Spoiler(3), tmp_path / "source"
    source.mkdir()
    head = "Hospital,Patient,Age,Gender,SARS-CoV-2 nucleic acids,CT,Morbidity,Mortality\n"
    rows = [f"Union,Patient {n},50,Male,Positive,Positive,Mild,Cured\n" for n in range(1, 11)]
    (source / "Patients.csv").write_text(head + "".join(rows))
    files = {}
    for patient in range(1, 11):
        with zipfile.ZipFile(source / f"Patient {patient}.zip", "w") as archive:
            for number in range(20):
                key = f"patient{patient:04d}/{number}"
                files[f"Patient {patient}.zip/Patient {patient}/{number}.png"] = key
                archive.writestr(f"Patient {patient}/{number}.png", spoil(key, number))
            archive.writestr(f"Patient {patient + 1}/x.png", spoil("x", NAMES.index("none")))
    del spoil.wanted["x"]
    found, skipped = build("ictcf/patients", source, tmp_path)
    elsewhere = [file for file, reason in skipped.items() if "no patient of" in reason]
    assert len(elsewhere) == 10 and all(file.endswith("/x.png") for file in elsewhere)
    spoil.check(found, {files[f]: r for f, r in skipped.items() if f in files})
    assert spoil.mutated == MUTATED["ictcf/patients"]


def test_slices_of_ictcf(tmp_path):
    spoil, source, files = Spoiler(4), tmp_path / "source", {}
    for number in range(100):
        folder, label = (("NiCT", "non_informative"), ("nCT", "negative"), ("pCT", "positive"))[
            number % 3
        ]
        (source / folder).mkdir(parents=True, exist_ok=True)
        files[f"{folder}/{number}.png"] = key = f"{label}/{number}"
        (source / folder / f"{number}.png").write_bytes(spoil(key, number))
    found, skipped = build("ictcf/slices", source, tmp_path)
    spoil.check(found, {files[file]: reason for file, reason in skipped.items()})
    assert spoil.mutated == MUTATED["ictcf/slices"]


def test_xrays_and_lungs_of_covid_chestxray(tmp_path):
    spoil, lungs, source = Spoiler(5), Spoiler(6), tmp_path / "source"
    masks = source / "annotations/lungVAE-masks"
    masks.mkdir(parents=True)
    (source / "images").mkdir()
    rows = ["patientid,finding,view,modality,folder,filename"]
    for number in range(200):
        name = f"x{number}.png"
        rows.append(f"{number},COVID-19,PA,X-ray,images,{name}")
        (source / "images" / name).write_bytes(spoil(name, number))
        lung = np.uint8(255 * (lungs.rng.random((SIDE, SIDE)) < 0.3))
        (masks / f"x{number}_mask.png").write_bytes(lungs(name, number // len(NAMES), lung))
    (source / "metadata.csv").write_text("\n".join(rows))
    found, skipped = build("covid_chestxray/xray", source, tmp_path)
    spoil.check(found, {f.rpartition("/")[2]: r for f, r in skipped.items() if "_mask" not in f})
    for name, example in found.items():
        (wanted, may_fail), whole = lungs.wanted[name], example["image"].shape[:2]
        reason = skipped.get(f"annotations/lungVAE-masks/{name.removesuffix('.png')}_mask.png")
        assert example["lung_known"] != bool(reason) and (may_fail or not reason)
        if reason:
            assert not example["lung"].any()
        else:  # on the X-ray's own pixels, whatever size either file has got
            wanted = cv2.resize(wanted, whole[::-1], interpolation=cv2.INTER_NEAREST)
            assert same(example["lung"][..., 0], wanted // 255), name
    assert spoil.mutated + lungs.mutated == MUTATED["covid_chestxray/xray"]


def nifti(array):
    """The bytes of a .nii.gz that holds [Z, H, W] upright slices, and of no time of writing."""
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), medseg_data.LPS)
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def test_volumes_of_covid_chestxray(tmp_path):
    rng, source, wanted = np.random.default_rng(7), tmp_path / "source", {}
    (source / "volumes").mkdir(parents=True)
    rows, ways = ["patientid,finding,view,modality,folder,filename"], ["none", *NAMES[:5]]
    for number in range(60):
        name, array = f"v{number}.nii.gz", rng.integers(0, 256, (2, 6, 8), dtype=np.uint8)
        array[0, 0, :2] = 0, 255
        rows.append(f"{number},COVID-19,Axial,CT,volumes,{name}")
        how = ways[number % len(ways)]
        (source / "volumes" / name).write_bytes(MUTATIONS[how][0](rng, array, nifti(array)))
        wanted[name] = array, how
    (source / "metadata.csv").write_text("\n".join(rows))
    found, skipped = build("covid_chestxray/ct_volume", source, tmp_path)
    for name, (array, how) in wanted.items():
        there = [found[f"{name}/{z}"]["image"][..., 0] for z in range(2) if f"{name}/{z}" in found]
        assert bool(there) != (name in {f.rpartition("/")[2] for f in skipped}), (name, how)
        assert there or how != "none", skipped
        assert not there or same(np.stack(there), array), (name, how)
    assert sum(how != "none" for _, how in wanted.values()) == MUTATED["covid_chestxray/ct_volume"]


def test_volumes_of_medseg(tmp_path):
    """Of seven volumes one file each is spoilt, cut to fewer slices, or takes another's place."""
    rng, mutated = np.random.default_rng(8), 0
    clean = medseg_data.make(tmp_path / "clean")
    right, _ = build("medseg/volumes", clean, tmp_path / "clean")
    ways = [*NAMES[:5], "fewer", "swapped"]
    for turn in range(6):
        source = tmp_path / f"source{turn}"
        shutil.copytree(clean, source)
        gone = set()
        for number, how in enumerate(np.roll(ways, turn).tolist(), start=1):
            path = source / ("rp_im", "rp_msk", "rp_lung_msk")[(number + turn) % 3]
            path = path / f"{number}.nii.gz"
            if how == "swapped":
                image, mask = (source / f"{n}/{number}.nii.gz" for n in ("rp_im", "rp_msk"))
                image.rename(path.with_name("x"))
                mask.rename(image)
                path.with_name("x").rename(mask)
            elif how == "fewer":
                path.write_bytes(nifti(medseg_data.chest(2)["image"]))
            else:
                path.write_bytes(MUTATIONS[how][0](rng, None, path.read_bytes()))
            if how in ("swapped", "fewer", "empty", "noise"):
                gone.add(number)
            mutated += 1
        found, skipped = build("medseg/volumes", source, tmp_path / f"{turn}")
        for number in range(1, 10):
            ids = [f"volume{number}_{z:03d}" for z in range(3)]
            there = [key for key in ids if key in found]
            assert not there if number in gone else there in ([], ids), (turn, number)
            assert there or any(f"/{number}.nii.gz" in file for file in skipped), (turn, number)
            assert there or number < 8
            for key in there:
                for part in ("image", "mask", "lung"):
                    assert same(found[key][part], right[key][part]), (turn, key, part)
    assert mutated == MUTATED["medseg/volumes"]


def test_covid_semiseg_reads_it_rightly_or_stops_and_names_the_file(tmp_path):
    """Its files are a hundred and known: damage to one of them is no time to go on."""
    rng, clean = np.random.default_rng(9), semiseg_data.make(tmp_path / "clean")
    right, _ = build("covid_semiseg/binary", clean, tmp_path / "right")
    files = sorted((clean / "TrainingSet/LungInfection-Train").rglob("*.*g"))
    ways, outcomes = [*NAMES[:5], "larger", "renamed", "swapped"], []
    for number in range(MUTATED["covid_semiseg"]):
        source, how = tmp_path / f"source{number}", ways[number % len(ways)]
        shutil.copytree(clean, source)
        path = source / files[int(rng.integers(len(files)))].relative_to(clean)
        if how == "larger":
            path = source / "TrainingSet/LungInfection-Train/Doctor-label/GT/10.png"
        if how == "swapped":
            path = path.parents[2] / "Doctor-label/GT/10.png"
            path.write_bytes((path.parents[1] / "Imgs/10.jpg").read_bytes())
        elif how == "renamed":
            path.rename(path.with_stem("Data-2"))  # its old name or its new one is told
        elif how == "larger":
            path.write_bytes(larger(rng, cv2.imread(str(path), 0), b""))
        else:
            path.write_bytes(MUTATIONS[how][0](rng, None, path.read_bytes()))
        try:
            found, _ = build("covid_semiseg/binary", source, tmp_path / f"{number}")
        except ValueError as error:
            assert re.search(rf"{path.name}|Data-2", str(error)), (how, path, error)
            assert not list((tmp_path / f"{number}").rglob("1.0.0"))
            outcomes.append("stopped")
            continue
        assert how in NAMES[:3], how
        assert found.keys() == right.keys()
        for key, example in found.items():  # a JPG has no checksum: its pixels may differ
            assert same(example["mask"], right[key]["mask"]), (how, path)
            assert example["image"].shape == right[key]["image"].shape, (how, path)
        outcomes.append("read")
    assert outcomes.count("stopped") > 15, outcomes


@pytest.mark.parametrize("seed", range(20))
def test_a_spoilt_archive_is_never_a_crash(seed, tmp_path, monkeypatch):
    """Bytes flipped anywhere in the archive itself: its directory, headers, and members."""
    monkeypatch.setattr(shard_writers, "_cores", lambda: 1)
    rng, source = np.random.default_rng(seed), tmp_path / "source"
    source.mkdir()
    buffer, arrays = io.BytesIO(), {}
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(10):
            array = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            archive.writestr(f"NCP/1/2/{number}.png", encoded(array))
            arrays[f"NCP/1/2/{number}"] = array
    (source / "NCP-1.zip").write_bytes(flip(rng, None, buffer.getvalue()))
    with zipfile.ZipFile(source / "NCP-2.zip", "w") as archive:
        archive.writestr("NCP/9/9/whole.png", encoded(array))
    found, skipped = build("cc_ccii/slices", source, tmp_path)
    assert same(found.pop("NCP/9/9/whole")["image"][..., 0], array)
    originals = {a.tobytes() for a in arrays.values()}  # a flip may change a member's name
    assert all(e["image"].tobytes() in originals for e in found.values())
    assert len(found) == 10 or skipped
