"""The exception for reading and writing bundles."""


class BundleError(Exception):
    """A bundle is missing, damaged, of an unsupported schema, or cannot be written.

    The message names the file or field, the value found and the value wanted.
    """


class SignatureError(BundleError):
    """A bundle is not signed, or not by a trusted key, or is not the one that was signed.

    Or a key cannot be used. The message says which.
    """
