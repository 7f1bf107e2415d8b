"""COVID-CT: CT figures out of papers, COVID-19 or not (Zhao et al. 2020)."""
