"""CC-CCII: chest CT slices of NCP, CP and normal controls, up to 617,775 (Zhang et al. 2020)."""
