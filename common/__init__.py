"""Code shared by training, export and service, so that their bits agree; NumPy and Pillow only."""
