"""Programs that train one and the same VAE on the same images, each with one library."""
