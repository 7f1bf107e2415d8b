"""A lab's own labelled slices, in plain folders."""
