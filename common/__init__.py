"""What training, export and service must agree on to the bit: NumPy and Pillow alone."""
