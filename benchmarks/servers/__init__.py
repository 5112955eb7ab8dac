"""The contenders, one a file, and the programs of those that are written here."""
