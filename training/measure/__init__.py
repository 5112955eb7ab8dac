"""How good a model is: ELBO and importance-weighted bound, FID, and the classifier it uses."""
