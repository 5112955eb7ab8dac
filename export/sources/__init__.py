"""Autoencoders made by others, read as modules or graphs of the contract: one file a kind."""
