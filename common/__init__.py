"""Code that training, export and service share to get equal bits; needs NumPy and Pillow only."""
