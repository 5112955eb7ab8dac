"""Programs that train the same VAE on the same images, each with one library."""
