"""covid-chestxray-dataset: X-rays and CT out of papers and case collections (Cohen et al. 2020)."""
