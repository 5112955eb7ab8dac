"""Commands of the `latentserve` command line, one file per group.

Modules that need NumPy or grpc are imported when a command runs, so that `--help` is fast.
"""
