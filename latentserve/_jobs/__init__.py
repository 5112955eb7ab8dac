"""Dataset jobs: their sources, their shards, and the folder that lets a job resume."""
