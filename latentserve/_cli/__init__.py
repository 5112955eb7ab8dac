"""The client commands of the command line, one file for each group of them.

What reads and writes arrays is imported when a command runs, so that `--help` does not wait
for NumPy and grpc.
"""
