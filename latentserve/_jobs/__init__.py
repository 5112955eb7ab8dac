"""Dataset jobs: sources, shards, and the folder from which a killed job is resumed."""
