"""Severity scores: identities, every boundary, and the phantom's known truth."""

import numpy as np
import pytest

from infnet_jax.clinic import severity
from tfds_builders.phantom.phantom_dataset_builder import make_patient

SHAPE = (20, 100)  # row r is region r + 1


def _maps():
    regions = np.repeat(np.arange(1, 21, dtype=np.uint8)[:, None], SHAPE[1], axis=1)
    lobes, zones = (regions - 1) // 4 + 1, (regions - 1) * 6 // 20 + 1
    return {"regions": regions, "lobes": lobes, "zones": zones}


def _infected(*per_row):
    """A mask with so many infected pixels in each row of 100."""
    mask = np.zeros(SHAPE, np.uint8)
    for row, n in enumerate(per_row):
        mask[row, :n] = 1
    return mask


def _score(mask, lung, **known):
    return severity.grade(severity.count(mask, lung, **known))


def _totals(s):
    return s.infected_share, s.grade, s.ct_ss, s.lobar_25, s.tss, s.six_zone


def test_all_infected_is_the_greatest_and_none_the_least():
    lung = np.ones(SHAPE, bool)
    most = _score(np.ones(SHAPE, np.uint8), lung, **_maps())
    least = _score(np.zeros(SHAPE, np.uint8), lung, **_maps())
    assert _totals(most) == (1.0, 2, 40, 25, 20, 24) and _totals(least) == (0.0, 0, 0, 0, 0, 0)
    assert (most.po_percent, most.severe, least.severe) == (100.0, True, False)


@pytest.mark.parametrize("percent, points", [(0, 0), (1, 1), (49, 1), (50, 2), (51, 2), (100, 2)])
def test_region_points_at_their_bounds(percent, points):
    s = _score(_infected(percent), np.ones(SHAPE), **_maps())
    assert s.ct_ss_regions == [points] + [0] * 19 and s.ct_ss == points
    assert s.region_shares[0] == percent / 100


@pytest.mark.parametrize(
    "infected, grade", [(0, 0), (19, 0), (20, 1), (999, 1), (1000, 2), (2000, 2)]
)
def test_grades_are_closed_at_exactly_1_50_and_100_percent(infected, grade):
    mask = np.zeros(2000, np.uint8)
    mask[:infected] = 1
    assert _score(mask, np.ones(2000)).grade == grade


LOBES = {0: (0, 0), 1: (1, 1), 5: (1, 1), 6: (2, 1), 25: (2, 1), 26: (3, 2)}
LOBES |= {50: (3, 2), 51: (4, 3), 75: (4, 3), 76: (5, 4), 100: (5, 4)}


@pytest.mark.parametrize("percent", LOBES)
def test_lobe_and_zone_points_at_their_bounds(percent):
    lobar, tss = LOBES[percent]
    mask, ones = np.zeros(100, np.uint8), np.ones(100, np.uint8)
    mask[:percent] = 2
    s = _score(mask, ones, lobes=ones, zones=ones)
    assert (s.lobar_25, s.tss, s.six_zone) == (lobar, tss, tss)
    assert s.lobe_shares[0] == percent / 100 and np.isnan(s.lobe_shares[1])


def test_the_cut_off_lies_between_19_and_20_points():
    at_19 = _score(_infected(*[100] * 9, 1), np.ones(SHAPE), **_maps())
    at_20 = _score(_infected(*[100] * 10), np.ones(SHAPE), **_maps())
    assert (at_19.ct_ss, at_19.severe, at_20.ct_ss, at_20.severe) == (19, False, 20, True)


def test_more_infection_never_lowers_a_score():
    rng = np.random.default_rng(0)
    order = rng.permutation(np.prod(SHAPE))
    mask, last = np.zeros(SHAPE, np.uint8), None
    for n in range(0, 2001, 50):
        mask.ravel()[order[:n]] = 1 + (order[:n] % 2)
        now = _totals(_score(mask, np.ones(SHAPE), **_maps()))
        assert last is None or all(b >= a for a, b in zip(last, now, strict=True))
        last = now
    assert last == (1.0, 2, 40, 25, 20, 24)


def test_slices_are_pooled_before_they_are_graded():
    few, many = np.ones((1, 100), np.uint8), np.ones((1, 300), np.uint8)
    ill = severity.count(few, few, regions=few)
    well = severity.count(0 * many, many, regions=many)
    s = severity.grade(ill + well)  # 100 of 400 pixels of region 1: 1 point, where 2 + 0 were two
    assert (s.infected_share, s.ct_ss_regions[0], s.regions_used) == (0.25, 1, 1)
    assert s.ct_ss == 20  # one point of one used region, rescaled to 20 regions


def test_regions_without_a_voxel_are_not_used_and_the_rest_is_rescaled():
    lung = np.ones(SHAPE, bool)
    lung[:5] = False
    s = _score(_infected(*[0] * 5, *[60] * 3), lung, **_maps())
    assert s.regions_used == 15 and s.ct_ss_regions[:9] == [-1] * 5 + [2, 2, 2, 0]
    assert s.ct_ss == pytest.approx(6 * 20 / 15)
    assert np.isnan(s.region_shares[0]) and s.as_dict()["region_shares"][0] is None


def test_infection_outside_the_lung_widens_it():
    mask, lung = np.array([[1, 2, 0, 0]]), np.array([[0, 1, 1, 1]])
    s = _score(mask, lung, regions=lung.astype(np.uint8))
    assert s.infected_share == 0.5 and s.outside_regions == 1


def test_classes_volumes_and_high_opacity():
    mask, lung = np.array([1, 1, 2, 2, 0, 0, 0, 0, 0, 0]), np.ones(10)
    hu = np.array([-500, -200, -199, 40, 100, -900, -900, -900, -900, -900])
    s = _score(mask, lung, hu=hu, spacing=(10, 10, 10))
    assert (s.ggo_share, s.consolidation_share) == (0.2, 0.2)
    assert (s.lung_ml, s.infected_ml) == (10.0, 4.0)
    assert (s.po_percent, s.pho_percent) == (40.0, 20.0)  # -200 is not above -200
    bare = _score(mask, lung)
    assert bare.pho_percent is bare.lung_ml is bare.ct_ss is bare.lobar_25 is bare.six_zone is None


def test_no_lung_is_undefined_and_not_zero():
    s = _score(np.zeros((2, 2), np.uint8), np.zeros((2, 2)), regions=np.zeros((2, 2), int))
    assert np.isnan(s.infected_share) and s.grade is None
    assert np.isnan(s.ct_ss) and s.severe is None and s.regions_used == 0
    assert s.as_dict()["infected_share"] is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lung": np.ones((3, 3))}, "lung has shape"),
        ({"mask": np.full(SHAPE, 3)}, "mask holds 3"),
        ({"regions": np.full(SHAPE, 21)}, "regions holds labels 21"),
        ({"hu": np.zeros((1, 1))}, "hu has shape"),
    ],
)
def test_wrong_maps_are_named(change, words):
    given = {"mask": _infected(1), "lung": np.ones(SHAPE)} | change
    with pytest.raises(ValueError, match=words):
        _score(**given)


def test_slices_of_other_spacing_are_not_pooled():
    a, b = (severity.count(np.ones(1, int), np.ones(1), spacing=s) for s in ((1, 1, 1), (2, 1, 1)))
    with pytest.raises(ValueError, match="0.001 and 0.002 ml"):
        a + b


@pytest.mark.parametrize("patient", [0, 2, 4])  # number 4 is healthy
def test_ct_ss_of_a_phantom_is_its_known_truth(patient):
    slices = list(make_patient(3, patient, n_slices=4, size=96))
    tallies = [severity.count(e["mask"], e["lung"], regions=e["region"]) for e in slices]
    for e, one in zip(slices, tallies, strict=True):
        share = severity.grade(one).region_shares
        np.testing.assert_allclose(np.nan_to_num(share), e["region_share"], atol=1e-6)
    tally = sum(tallies[1:], tallies[0])
    truth = 0
    for r in range(1, 21):  # counted by hand, region by region over all slices
        whole = sum(int((e["region"] == r).sum()) for e in slices)
        sick = sum(int(((e["region"] == r) & (e["mask"] > 0)).sum()) for e in slices)
        truth += (sick > 0) + (sick / whole >= 0.5)
    assert severity.grade(tally).ct_ss == truth and (truth > 0) == (patient != 4)
