"""Code that training, export and service share so that their bits agree: NumPy and Pillow only."""
