"""The two segmentation sets of medicalsegmentation.com: 100 slices, and 829 slices of 9 volumes."""
