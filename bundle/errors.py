"""The exception for reading and writing bundles."""


class BundleError(Exception):
    """A bundle is missing, damaged, of an unsupported schema, or cannot be written.

    The message names the file or field, the value found and the value wanted.
    """
