"""The commands that call a server, a file for each group of them.

What reads and writes arrays is imported when a command runs: `--help` need not wait
for NumPy and grpc.
"""
