"""The autoencoder in torch: networks, priors, objectives and their configuration."""
