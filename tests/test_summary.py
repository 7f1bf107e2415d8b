"""What each kind of stage tells on the page of a run, from files made by hand."""

import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import lung, multi, multi_selfsup, selfsup, semisup, supervised
from infnet_jax.data import decode, resize, text
from infnet_jax.data.sources import open_split
from infnet_jax.evaluation import figures, metrics, out_of_fold, summary, test_split
from infnet_jax.files import write_json, write_npz
from infnet_jax.plan.resolve import resolve
from tests.drawn import cells_of, pixels_of

READINGS = ("toolbox", "empty-aware")


def log(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluated(workdir, name="infection"):
    """The files of stage `evaluate`, of one slice with a square lesion."""
    truth = np.zeros((32, 32), bool)
    truth[8:24, 8:24] = True
    prob = np.where(truth, 0.9, 0.1)
    case = {"image": truth, "truth": truth, "found": truth[::-1], "prob": prob, "dice": 1.0}
    titles = ("best", "median", "worst")
    arrays = {f"{t}_{key}": np.asarray(value) for t in titles for key, value in case.items()}
    write_npz(workdir / "evaluate" / f"{name}.npz", arrays)
    records = [metrics.toolbox(prob, truth)]
    both = {reading: metrics.summarise(records, reading) for reading in metrics.READINGS}
    found = both | {"masks": both, "floors": {}}
    found["cut"] = {"threshold": 0.35, "cross_validated": 0.25, **both}
    result = {"thresholds": {name: 0.4}, "classes": {name: found}, "cross_validated": {name: 0.75}}
    write_json(workdir / "evaluation.json", result)


@pytest.mark.slow
def test_the_page_of_a_supervised_run(phantom, tmp_path):
    plan = resolve(supervised.get_config("tiny"), tmp_path, phantom)
    (segment, evaluate) = plan.stages
    log(segment.folder, {"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 2, "loss": 1.0, "lr": 0.2})
    evaluated(tmp_path)
    timings = [{"name": "segment", "seconds": 60.0}]
    page = summary.write(plan, timings=timings, name="mine:tiny", command="run it").read_text()
    assert page.startswith("# mine:tiny\n\n```\nrun it\n```\n\n## Test split\n\n| ")
    table = (tmp_path / "table.txt").read_text()
    assert table in page and table.splitlines()[2].startswith("| model, toolbox reading | 0.9")
    links = re.findall(r"\]\(<(.+)>\)", page)
    names = ("augmentation", "segment_curves", "test_infection", "roc_infection")
    assert links == [f"figures/{name}.png" for name in names]
    colours = (figures.SKY, figures.BLUE, figures.ORANGE, figures.BLUE)
    for link, colour in zip(links, colours, strict=True):
        assert pixels_of(tmp_path / link, colour) > 50, link
    for note in (
        "Input normalisation `dataset`, the same in every stage.",
        "Single-class loss `structure`.",
        "Masks mark a class from this probability on: infection 0.4.",
        "Cross-validated Dice of infection, each training slice by a network that had not seen it, "
        "empty-aware: 0.750.",
        "Cross-validated Dice of the map of infection cut at 0.35 (best in the toolbox reading), "
        "empty-aware: 0.250.",
    ):
        assert page.count(f"- {note}") == 1


def test_a_stage_may_have_any_name(tmp_path):
    stage = resolve(supervised.get_config("tiny"), tmp_path).stages[0]
    stage = stage._replace(name="x", networks=(stage.networks[0]._replace(folder=tmp_path / "x"),))
    plan = resolve(supervised.get_config("tiny"), tmp_path)._replace(stages=(stage,))
    log(tmp_path / "x", {"step": 1, "loss": 2.0})
    ((path, caption),) = summary.page(stage, plan).pictures
    assert path.name == "x_curves.png" and caption == "Fine-tuning."


def test_networks_of_an_ensemble_have_curves_of_their_own(tmp_path):
    config = multi.get_config("tiny")
    config.multi.update(folds=2, validation=0)
    plan = resolve(config, tmp_path)
    for network in plan.final.networks[:1]:
        log(network.folder, {"step": 1, "loss": 2.0, "dice_ggo": 0.5, "dice_consolidation": 0.5})
    pictures = summary.page(plan.final, plan).pictures  # the other has left no log
    assert [(path.name, caption) for path, caption in pictures] == [
        ("multi_fold0_curves.png", "The multi-class network. fold0.")
    ]
    assert pixels_of(pictures[0][0], figures.ORANGE) > 10  # its second class


def test_the_page_of_a_coach_compares_its_masks_with_random_ones(tmp_path):
    plan = resolve(multi_selfsup.get_config("tiny"), tmp_path)
    for stage in (s for s in plan.stages if s.learns == "inpaint"):
        early = {"step": 4, "rec_coach": 0.9, "rec_random": 0.9}
        late = {"step": 8, "rec_coach": 0.3, "rec_random": 0.2}
        rest = {"harder_share": 0.75, "mask_difference": 0.125, "coach_ratio": 1.5}
        rest |= {"coach_ratio_low": 1.4, "coach_ratio_high": 1.625, "oracle_ratio": 2.0}
        log(stage.folder, early | rest, late | rest)
        seen = np.ones((1, 16, 16))
        seen[:, :8] = 0
        panel = {"image": seen, "visible_coach": seen, "filled_coach": seen}
        write_npz(stage.folder / "panels" / "00000004.npz", panel)
        page = summary.page(stage, plan)
        of = " (multi-class)" if stage.net.classes > 1 else ""
        assert [title for title, _ in page.tables] == [f"Is the coach hard?{of}"]
        table = page.tables[0][1]
        assert "| 1.40 to 1.62 |" in table and "| 0.3000 |" in table  # of the last evaluation
        assert "did part of its work" in page.notes[1] and "50 % of the oracle's" in page.notes[1]
        assert "| 0.125 |" in table and "| 0.75 |" in table
        names = [path.name for path, _ in page.pictures]
        inpainting = "inpainting_multi.png" if of else "inpainting.png"
        assert names == [f"{stage.name}_curves.png", inpainting]
        assert pixels_of(page.pictures[0][0], figures.ORANGE) > 50
        assert page.notes[0].startswith(f"Pre-training{of}: `")
        assert page.notes[0].endswith("`all_but_last` weights transferred.")


def test_a_run_without_a_coach_is_not_judged_by_one(tmp_path):
    config = selfsup.get_config("tiny")
    config.pretrain.rounds.use_coach = False
    plan = resolve(config, tmp_path)
    log(plan.stages[0].folder, {"step": 4, "rec_coach": 0.9, "rec_random": 0.5})
    page = summary.page(plan.stages[0], plan)
    assert page.tables == [] and page.notes[0].endswith("No coach: all masks are random.")


def test_the_page_of_rotation_shows_its_accuracy(tmp_path):
    config = selfsup.get_config("tiny")
    config.pretrain.pretext = "rotation"
    plan = resolve(config, tmp_path)
    stage = plan.stages[0]
    log(stage.folder, {"step": 0, "loss": 1.4}, {"step": 4, "accuracy": 0.5})
    write_json(stage.folder / "mix.json", [{"examples": 12, "dropped": ["a", "b"]}])
    page = summary.page(stage._replace(mix="ictcf"), plan)
    assert [path.name for path, _ in page.pictures] == ["pretrain_curves.png"] and not page.tables
    assert page.notes == [
        "Pre-training: rotation prediction; the trunk alone is transferred.",
        "Pre-trained on `ictcf`: 10 slices, without 2 that are near-copies of the test split "
        "(`pretrain/mix.json`).",
    ]


def test_the_page_of_priors_names_their_dice(tmp_path):
    config = multi.get_config("tiny")
    plan = resolve(config, tmp_path)
    write_json(plan.prior.folder / "cross_validation.json", {"dice": 0.625})
    assert summary.page(plan.prior, plan).notes[-1] == (
        "The prior of each training slice comes from one of 2 networks that had not seen it (their "
        "cross-validated Dice at 0.5 is 0.625); that of any other slice is the mean of all of them."
    )
    config.prior.kind = "truth"
    truth = resolve(config, tmp_path)
    assert summary.page(truth.prior, truth) == summary.Page()


def test_the_page_of_lungs_shows_the_worst(phantom, tmp_path):
    plan = resolve(lung.get_config("folders"), tmp_path, phantom)
    stage, source = plan.stages[0], open_split(phantom, "train", "lung")
    rows = {}
    for i in range(4):
        name = text(source[i]["id"])
        path = stage.folder / "lungs" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), 255 * np.eye(*decode(source[i], "image").shape[:2], dtype=np.uint8))
        rows[name] = {"dice": 0.9 - i / 10, "kept": 1.0}
    score = out_of_fold.summarise_lungs(rows)
    write_json(stage.folder / "cross_validation.json", score)
    page = summary.page(stage, plan)
    note = "Cross-validation: each slice by one of 5 networks that had not seen it."
    assert page.notes[-1] == note
    assert page.tables[0][0] == "Cross-validation" and "0.750" in page.tables[0][1]
    ((path, _),) = page.pictures
    assert pixels_of(path, figures.SKY) > 200 and pixels_of(path, figures.ORANGE) > 200
    with Image.open(path) as picture:  # two columns, two rows a part of the dataset
        ratio = picture.height / picture.width
    assert ratio == pytest.approx((2.75 * 2 * len(score["parts"]) + 0.6) / (2.8 * 2), rel=0.02)


def test_pseudo_labels_are_shown_each_with_its_own_slice(phantom, tmp_path):
    plan = resolve(semisup.get_config("tiny"), tmp_path, phantom)
    stage, source = plan.stages[0], open_split(phantom, "unlabeled")
    names = [text(source[i]["id"]) for i in range(len(source))]
    for k, part in enumerate((names[5:], names[:5])):  # slice i marks i rows of eight
        rows = {name: names.index(name) for name in part}
        maps = {n: np.uint8([[255] * 8] * i + [[100] * 8] * (8 - i)) for n, i in rows.items()}
        write_npz(stage.folder / f"round000{k}.npz", maps)
    cases = summary.pseudo_label_cases(stage, plan)
    assert [case[0] for case in cases] == [f"{names[i]}\n{i / 8:.1%} marked" for i in (0, 2, 4, 7)]
    for i, (_, image, truth, marked, prob) in zip((0, 2, 4, 7), cases, strict=True):
        whole = decode(source[i], "image")
        np.testing.assert_array_equal(image, resize(whole, 8, labels=False)[..., 0])
        assert truth is None and marked.sum() == 8 * i
        assert set(np.round(255 * prob).astype(int).ravel().tolist()) <= {100, 255}
    report = {"rounds": 2, "slices": 8, "marked": 0.034, "marked_in_masks": 0.145}
    write_json(stage.folder / "pseudo.json", report)
    page = summary.page(stage, plan)
    assert page.notes[-1] == (
        "Pseudo-labels: 8 slices of `unlabeled` in 2 rounds; they mark 3.4% of the pixels, the "
        "true masks of the labelled slices 14.5%."
    )
    assert pixels_of(page.pictures[0][0], figures.ORANGE) > 200


def test_the_page_of_a_mean_teacher_has_no_pictures(tmp_path):
    config = semisup.get_config("tiny")
    config.semi.kind = "mean_teacher"
    plan = resolve(config, tmp_path)
    page = summary.page(plan.stages[0], plan)
    assert page.notes[-1].startswith("Mean teacher: consistency weight 10") and not page.pictures


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": 0}, "No slice was held out"),
        ({"validation": 2}, "2 training slices (whole groups) were held out"),
        ({"validation": 0, "repeats": 3}, "mean of 3 networks is evaluated, each trained on all t"),
        ({"validation": 0, "folds": 2}, "mean of 2 networks is evaluated, each trained on all fo"),
    ],
)
def test_whose_weights_are_evaluated(changes, words, tmp_path):
    """Folds share a teacher of all slices where there is one; nobody else does."""
    for module, teaches in ((supervised, False), (semisup, True)):
        config = module.get_config("tiny")
        config.segment.update(changes)
        first, *more = test_split.what_is_evaluated(resolve(config, tmp_path))
        assert words in first
        assert bool(more) == (teaches and "folds" in changes)
        assert all(note.startswith("They share a start") for note in more)


@pytest.fixture
def found():
    """What `evaluation.json` holds of a class: Dice 16 / 17 at 0.5, 1 of the masks."""
    truth = np.zeros((4, 4), bool)
    truth[:2] = True  # 8 of 16 pixels
    prob = np.where(truth, 0.9, 0.1).astype(np.float32)
    prob[3, 3] = 0.8  # one false positive, below the masks' threshold of .85

    def readings(values):
        records = [metrics.toolbox(values, truth)]
        return {reading: metrics.summarise(records, reading) for reading in metrics.READINGS}

    masks = readings((prob >= 0.85).astype(np.float32))
    made = readings(prob) | {"masks": masks, "floors": metrics.floors([truth], [truth])}
    return json.loads(json.dumps(made))


def test_result_table_holds_the_model_in_both_readings_and_the_floors(found):
    head, _, *rows = cells_of(test_split.result_table({"classes": {"infection": found}}))
    assert head[1:4] == ["Dice (mean over 256 thresholds)", "Dice at 0.5", "IoU at 0.5"]
    assert head[4:] == ["Sen", "Spe", "S", "E", "wF", "MAE", "ROC-AUC"]
    answers = [f"{of}, {how} reading" for of in ("model", "masks") for how in READINGS]
    assert [row[0] for row in rows[:4]] == answers
    assert [row[0] for row in rows[4:]] == ["floor: all positive", "floor: mean training mask"]
    assert [rows[i][2] for i in (0, 2, 5)] == [f"{16 / 17:.3f}", "1.000", "1.000"]
    assert rows[4][2] == f"{2 * 8 / 24:.3f}"  # all positive: 2 * 8 / (8 + 16)
    assert rows[0][3] == f"{8 / 9:.3f}" and rows[2][9:] == ["0.000", "1.000"]


def test_result_table_of_two_classes_and_a_map_cut_by_itself(found):
    cut = {"threshold": 0.35, "cross_validated": 0.5, **found["masks"]}
    classes = {"ggo": found | {"cut": cut}, "consolidation": found}
    names = [row[0] for row in cells_of(test_split.result_table({"classes": classes}))[2:]]
    assert names[4:6] == [f"ggo, map cut at 0.35, {how} reading" for how in READINGS]
    assert names[8] == "consolidation, model, toolbox reading" and len(names) == 8 + 6
