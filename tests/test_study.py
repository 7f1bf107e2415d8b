"""The walk over cells with faked runs; tables against numbers made by hand."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import study as config_file, supervised
from infnet_jax import cli, study
from infnet_jax.evaluation import statistics
from infnet_jax.evaluation.metrics import SLICE_SCORES
from infnet_jax.plan.resolve import resolve
from infnet_jax.study import tables
from infnet_jax.study.cells import collect, dependencies, dice_lines, make_cells


class Fake:
    """Runs that note which stages they were asked to make, and leave what the tables read."""

    def __init__(self):
        self.ran, self.made, self.fail = [], [], {}

    def __call__(self, cell, dataset, command):
        self.ran.append(str(cell))
        for stage in cell.config.stages:
            if (cell.folder / stage / "done.json").exists():
                continue
            if (error := self.fail.get((str(cell), stage))) is not None:
                raise error
            self.made.append((str(cell), stage))
            (cell.folder / stage).mkdir(parents=True, exist_ok=True)
            (cell.folder / stage / "done.json").write_text("{}")
        leave(cell.folder, {"a": 0.5, "b": 0.7}, labelled=cell.labels or 10)


def leave(folder, dice, labelled=10, losses=(1.0, 2.0), classes=("infection",)):
    """What a finished run leaves, the three readings alike."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [column.format(c) for c in classes for column, _ in SLICE_SCORES.values()]
    with (folder / "evaluation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *names])
        writer.writerows([name, *[value] * len(names)] for name, value in dice.items())
    (folder / "losses.json").write_text(json.dumps(dict.fromkeys(("distance", "total"), [*losses])))
    (folder / "labelled.json").write_text(json.dumps(labelled))


@pytest.fixture
def config():
    return config_file.get_config("tiny")


@pytest.fixture
def semiseg(tmp_path):
    return make_cells(config_file.get_config("semiseg"), tmp_path)


@pytest.fixture
def walk(config, tmp_path, monkeypatch):
    """walk(fake) runs the tiny study in one folder, figures left out; returns its exit code."""
    for name in ("label_curve", "scatter"):
        monkeypatch.setattr(tables, name, lambda *_: None)
    monkeypatch.setattr(study.configs, "prepare", lambda one: (None, None))

    def run(fake):
        monkeypatch.setattr(study, "run_to_the_end", fake)
        return study.run(config, workdir=tmp_path, command="infnet-jax study")

    return run


ALL = [("sinfnet", "all"), ("sinfnet", "4"), ("selfsup", "all"), ("selfsup", "4")]
CELLS = [f"{row}, {n} labels, seed 0" for row, n in (*ALL, ("selfsup_aug", "all"))]


def test_each_cell_runs_once_and_pretraining_once_for_all(walk, tmp_path, capsys):
    fake = Fake()
    assert walk(fake) == 0 and fake.ran == CELLS
    assert [cell for cell, stage in fake.made if stage == "pretrain"] == [CELLS[2]]
    assert sum(stage == "segment" for _, stage in fake.made) == 5
    lent = tmp_path / "cells" / "selfsup_aug" / "labels-all-seed0" / "pretrain"
    assert lent.is_symlink() and not lent.readlink().is_absolute()
    said = capsys.readouterr().err.splitlines()
    assert "study: cell 1 of 5: sinfnet, all labels, seed 0; ETA unknown" in said
    assert "study: cell 5 of 5: selfsup_aug, all labels, seed 0; ETA 0:00" in said
    assert walk(fake) == 0 and fake.ran == CELLS  # all finished: nothing ran again


def test_a_killed_study_goes_on_where_it_stopped(walk):
    fake = Fake()
    fake.fail[CELLS[3], "segment"] = SystemExit("segment: stopped on request")
    with pytest.raises(SystemExit, match="stopped on request"):
        walk(fake)
    assert fake.ran == CELLS[:4]
    fake.fail, fake.ran, fake.made = {}, [], []
    assert walk(fake) == 0 and fake.ran == CELLS[3:]
    assert fake.made[0] == (CELLS[3], "segment")  # its pre-training was lent before the kill
    assert (CELLS[3], "pretrain") not in fake.made


def test_missing_weights_of_a_late_row_are_told_before_the_first_cell(config, walk, tmp_path):
    config.rows[config.run[-1]].set.weights = str(tmp_path / "nowhere")
    fake = Fake()
    with pytest.raises(ValueError, match=f"row {config.run[-1]}: no imported weights in .*nowhere"):
        walk(fake)
    assert not fake.ran and not (tmp_path / "cells").exists()


def test_a_failed_cell_is_listed_and_the_others_run(walk, tmp_path, capsys):
    fake = Fake()
    fake.fail[CELLS[2], "pretrain"] = FloatingPointError("loss not\nfinite at step 4")
    assert walk(fake) == 1 and fake.ran == CELLS
    assert [cell for cell, stage in fake.made if stage == "pretrain"] == [CELLS[3]]
    page = (tmp_path / "study.md").read_text()
    assert f"- {CELLS[2]}: loss not finite at step 4" in page and "1 cells failed" in page
    failed = tmp_path / "cells" / "selfsup" / "labels-all-seed0" / "failed.txt"
    assert "FloatingPointError" in failed.read_text()
    fake.fail, fake.ran = {}, []
    assert walk(fake) == 0 and fake.ran == [CELLS[2]] and not failed.exists()
    assert "failed" not in (tmp_path / "study.md").read_text()


def test_results_of_another_config_are_not_taken(walk, config, tmp_path):
    walk(Fake())
    config.bases.selfsup.pretrain.batch_size = 4
    fake = Fake()
    assert walk(fake) == 1 and not fake.ran
    page = (tmp_path / "study.md").read_text()
    assert page.count("belongs to another config: pretrain.batch_size = 8 (now 4)") == 3


def alike(one, other, stage):
    """Whether one cell may lend a stage to the other."""
    plans = [resolve(cell.config, Path()) for cell in (one, other)]
    number = [s.name for s in plans[0].stages].index(stage)
    first, second = (dependencies(plan, number) for plan in plans)
    return first == second


def changed(cell, **change):
    """A copy of a cell with another config."""
    other = cell._replace(config=cell.config.copy_and_resolve_references())
    other.config.update(change)
    return other


def test_stages_are_lent_only_where_they_would_come_out_alike(config, tmp_path):
    config.rows.selfsup.seeds = (0, 1)
    cells = {str(cell): cell for cell in make_cells(config, tmp_path)}
    one, few = cells[CELLS[2]], cells[CELLS[3]]
    assert few.config.data.labels == (4,) and one.config.data.labels == ()
    assert alike(one, few, "pretrain") and not alike(one, few, "segment")
    assert not alike(one, cells["selfsup, all labels, seed 1"], "pretrain")
    assert alike(one, changed(one), "pretrain")
    for change in (dict(model=dict(width=16)), dict(coach=dict(width=4)), dict(data=dict(fold=1))):
        assert not alike(one, changed(one, **change), "pretrain")


def test_priors_are_lent_between_rows_that_differ_in_the_last_network_alone(semiseg):
    assert len(semiseg) == 5 * (5 + 3 * 3 + 1) + 3 * 7
    rows = {cell.row: cell for cell in semiseg if cell.seed == 0 and not cell.labels}
    for one, other, stage, lent in (
        ("multi_sinfnet", "multi_aug50", "prior", True),
        ("multi_selfsup", "multi_selfsup_aug", "pretrain_multi", True),
        ("multi_sinfnet", "multi_scratch", "prior", False),
        ("multi_sinfnet", "multi_selfsup", "prior", False),
        ("selfsup", "multi_ours", "pretrain", True),
        ("ours", "selfsup", "pretrain", True),
        ("selfsup", "selfsup_random", "pretrain", False),
    ):
        assert alike(rows[one], rows[other], stage) == lent, (one, other)
    cell = rows["multi_selfsup"]  # a prior depends on how it is inferred
    for stage, change in (
        ("prior", dict(evaluate=dict(tta=True))),
        ("prior", dict(prior=dict(kind="truth"))),
        ("pretrain_multi", dict(data=dict(labels=(10,)))),
    ):
        other = changed(cell, **change)
        assert alike(cell, other, "pretrain") and not alike(cell, other, stage)


def test_a_lender_that_is_gone_is_no_obstacle(walk, tmp_path):
    walk(Fake())
    shutil.rmtree(tmp_path / "cells" / "selfsup" / "labels-all-seed0")
    borrower = tmp_path / "cells" / "selfsup_aug" / "labels-all-seed0"
    (borrower / "cell.json").unlink()
    fake = Fake()
    assert walk(fake) == 0
    assert fake.ran == [CELLS[2], CELLS[4]] and (CELLS[2], "pretrain") in fake.made


MISSPELT = dict(segment=dict(stepz=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(run=()), "run: name at least one of the rows"),
        (dict(run=("sinfet",)), "run: 'sinfet' is none of the rows"),
        (dict(rows=dict(sinfnet=dict(base="superb"))), "rows.sinfnet.base='superb': choose one of"),
        (dict(rows=dict(sinfnet=dict(seeds=()))), "rows.sinfnet: give at least one of seeds"),
        (dict(rows=dict(selfsup=dict(against="x"))), "rows.selfsup.against='x' is none"),
        (dict(rows=dict(sinfnet=dict(set=MISSPELT))), "rows.sinfnet.set: .*stepz"),
    ],
)
def test_a_wrong_row_is_refused_before_anything_runs(config, tmp_path, change, message):
    config.update(change)
    with pytest.raises(ValueError, match=message):
        make_cells(config, tmp_path)


def test_the_rows_are_what_their_names_say(semiseg):
    rows = {cell.row: cell.config for cell in semiseg}
    assert rows["sinfnet"].segment.augmentation.flip_h == 0.0
    assert rows["aug40"].segment.augmentation.cutout == 0.4
    assert rows["multi_aug40"].multi.augmentation.cutout == 0.4
    assert rows["multi_aug40"].segment.augmentation.cutout == 0.0
    assert rows["selfsup_aug"].segment.augmentation.cutout == 0.5
    assert "pretrain" in rows["ours"].stages and "pretrain" not in rows["scratch"].stages
    assert rows["ours"].segment.augmentation == rows["scratch"].segment.augmentation
    alone = ("multi", "lite")  # lite is no comparison
    steps = {c.segment.steps for name, c in rows.items() if not name.startswith(alone)}
    assert len(steps) == 1  # the same budget for all
    lite = supervised.get_config("lite")
    assert rows["lite"].weights == lite.weights
    assert rows["lite"].segment.to_dict() == lite.segment.to_dict()
    assert rows["lite"].data.name == rows["sinfnet"].data.name


def test_folds_are_put_together_again(config, tmp_path):
    config.folds, config.run = 2, ("sinfnet",)
    config.rows.sinfnet.labels = (0,)
    cells = make_cells(config, tmp_path)
    data = [c.config.data for c in cells]
    assert [(d.fold, d.folds, d.test) for d in data] == [(0, 2, "train"), (1, 2, "train")]
    leave(cells[0].folder, {"c": 0.1, "a": 0.2})
    leave(cells[1].folder, {"b": 0.4}, losses=(5.0,))
    [result] = collect(cells)
    assert result.ids == ("a", "b", "c")
    assert result.dice("mean", ["infection"]).tolist() == [[[0.2], [0.4], [0.1]]]
    assert result.columns["loss_total"].tolist() == [[2.0, 5.0, 1.0]]


@pytest.fixture
def six_slices(config, tmp_path):
    """The folder of a study of two rows, two seeds and six slices, written out."""
    config.rows.sinfnet.seeds = config.rows.selfsup.seeds = (0, 1)
    config.rows.sinfnet.labels = config.rows.selfsup.labels = (0,)
    config.run, config.leaking = ("sinfnet", "selfsup"), (("f",), ("nowhere",))
    theirs, gains = (0.1, 0.2, 0.3, 0.4, 0.5, 0.9), (0.01, 0.02, 0.03, 0.04, 0.05, -0.06)
    cells = make_cells(config, tmp_path)
    for cell in cells:
        dice = np.array(theirs) + np.array(gains) * (cell.row == "selfsup")
        dice += 0.02 * (cell.seed - 0.5)
        leave(cell.folder, dict(zip("abcdef", dice.tolist(), strict=True)), losses=range(6))
    tables.write(config, cells, tmp_path, {}, "x")
    return tmp_path


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_tables_by_hand(six_slices):
    base, ours, base_without, ours_without = read_csv(six_slices / "table2.csv")
    assert (base["without"], ours_without["without"]) == ("", "f")
    assert float(base["mean"]) == pytest.approx(0.4)
    assert float(ours["mean"]) == pytest.approx(0.4 + 0.09 / 6)
    assert float(ours["mean_gain"]) == pytest.approx(0.015) and ours["against"] == "SInfNet"
    # Rank sums 15 and 6 of 1..6: 14 of the 64 signs are no likelier on either side.
    assert float(ours["mean_p"]) == pytest.approx(2 * 14 / 64)
    assert base["paper"] == "0.26" and ours["paper"] == "0.31" and base["mean_p"] == "nan"
    assert float(base_without["mean"]) == pytest.approx(0.3) and base_without["slices"] == "5"
    assert float(ours_without["mean_p"]) == pytest.approx(2 / 32)
    assert float(ours["mean_low"]) < 0.415 < float(ours["mean_high"])
    first = read_csv(six_slices / "table1.csv")[0]
    assert (first["loss"], first["mean"], first["paper"]) == ("distance", "2.5", "nan")
    text = (six_slices / "study.md").read_text()
    shown = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(shown) == 3  # losses, all slices, without one
    assert all(len({line.count("|") for line in table}) == 1 for table in shown)
    assert "| SInfNet | all | 2 | 2.500 [" in text
    assert "| single class | labels | seeds | training loss" in text
    assert "Without slices f" in text and "nowhere" not in text
    assert "+0.015 / +0.015 / +0.015" in text
    assert (six_slices / "figures" / "slices.png").exists()


def test_two_classes_get_their_mean_and_budgets_a_curve(config, tmp_path):
    config.run, classes = ("sinfnet",), ("ggo", "consolidation")
    cells = make_cells(config, tmp_path)
    for cell in cells:
        leave(cell.folder, {"a": 0.2, "b": 0.4}, classes=classes, labelled=cell.labels or 9)
    lines = dice_lines(config, collect(cells))
    assert [line["class"] for line in lines] == ["ggo", "consolidation", "mean of classes"] * 2
    assert all(line["mean"] == pytest.approx(0.3) for line in lines)
    assert [line["learnt_from"] for line in lines[::3]] == [9, 4]
    tables.write(config, cells, tmp_path, {}, "x")
    assert (tmp_path / "figures" / "label_efficiency.png").exists()


@pytest.fixture
def cells(config, tmp_path):
    """Those of the tiny study with all labels."""
    for name in config.run:
        config.rows[name].labels = (0,)
    return make_cells(config, tmp_path)


def test_networks_with_other_parts_of_the_loss_share_a_table(config, cells, tmp_path):
    for cell in cells:
        leave(cell.folder, {"a": 0.2, "b": 0.4})
        part = "region" if cell.row == "sinfnet" else "edge"
        losses = {"total": [1.0, 2.0], part: [0.5, 0.5]}
        (cell.folder / "losses.json").write_text(json.dumps(losses))
    tables.write(config, cells, tmp_path, {}, "x")
    page = (tmp_path / "table1.md").read_text()
    head, _, net, *others = [line.split(" | ") for line in page.splitlines() if line[:2] == "| "]
    edge, region = (next(i for i, h in enumerate(head) if text in h) for text in ("edge", "U-Net"))
    assert (net[edge], net[region][:5]) == ("–", "0.500")
    assert all((row[edge][:5], row[region]) == ("0.500", "–") for row in others)


def test_p_values_are_corrected_over_all_comparisons_of_a_class(config, cells):
    rng = np.random.default_rng(0)
    for cell in cells:
        leave(cell.folder, {str(i): v for i, v in enumerate(rng.uniform(0, 1, 9))}, losses=range(9))
    results = collect(cells)
    lines = {line["row"]: line for line in dice_lines(config, results)}
    base, *others = (r.columns["dice_infection"][0] for r in results)
    right = statistics.holm([statistics.wilcoxon(other, base) for other in others])
    found = [lines[title]["raw_p"] for title in ("Self-super", "Self-super + aug")]
    assert found == pytest.approx(right)


def test_the_verb_hands_on_config_workdir_and_command(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(study, "run", lambda config, **kw: seen.append((config, kw)) or 0)
    words = ["study", "--config=configs/study.py:tiny", "--config.bases.supervised.seed=3"]
    assert cli.main([*words, f"--workdir={tmp_path}"]) == 0
    config, kwargs = seen[0]
    assert config.bases.supervised.seed == 3 and kwargs["workdir"] == tmp_path
    assert kwargs["command"].split()[:3] == ["infnet-jax", *words[:2]]
    assert cli.main(words) == 0 and str(seen[1][1]["workdir"]) == "runs/study-tiny"


def test_a_wrong_word_of_the_verb_is_one_line(capsys):
    assert cli.main(["study", "--config=configs/stud.py"]) == 1
    said = capsys.readouterr().err
    assert "stud.py: there is no such file" in said and said.count("\n") == 1
