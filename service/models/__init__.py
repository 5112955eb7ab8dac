"""Models on disk to models in memory: found, verified, loaded, proven and looked up by name."""
