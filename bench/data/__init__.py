"""Data sets, their three-way split, augmentation, and batches."""
