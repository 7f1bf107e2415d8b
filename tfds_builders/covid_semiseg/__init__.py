"""COVID-SemiSeg: labelled and unlabelled COVID-19 chest CT slices (Fan et al. 2020)."""
