"""The contenders, one per file, and the programs of those that are written here."""
