"""Evaluation: ELBO and importance-weighted bound, classifier FID, and its classifier."""
