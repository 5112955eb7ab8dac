"""The remote VAE that `remote_decode` and `remote_encode` of diffusers call.

Their images are in [-1, 1], those of bundles in [0, 1].
"""
