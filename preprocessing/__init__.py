"""How a picture becomes a model's input, for training and service alike (NumPy, Pillow).

One code for both, so that a model is asked about what it was trained on. Knows none of
the other packages.
"""
