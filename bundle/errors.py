"""What can be wrong with a bundle."""


class BundleError(Exception):
    """A bundle is missing, damaged, of an unknown schema or cannot be written.

    The message names the file or field, what was found and what was wanted.
    """
