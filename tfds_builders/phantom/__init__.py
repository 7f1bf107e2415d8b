"""Procedural chest CT slices with lesions, lungs and regions: made locally, no download."""
