"""The contenders, one per file, and the server programs that are part of this project."""
