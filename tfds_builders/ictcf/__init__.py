"""iCTCF (HUST-19): chest CT and clinical data of 1,521 patients of two Wuhan hospitals."""
