"""Dataset jobs: sources, shards, and the folder that lets a killed job go on."""
