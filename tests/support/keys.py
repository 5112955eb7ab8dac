"""Keys that sign bundles, and damage to what they have signed."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class KeyPair:
    """The files of a private key and of its public key."""

    private: Path
    public: Path


def write_keys(folder: Path, name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> KeyPair:
    """Writes a new key as NAME.pem and its public key as NAME.pub.pem, as openssl does."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = KeyPair(folder / f"{name}.pem", folder / f"{name}.pub.pem")
    key = ec.generate_private_key(curve())
    pair.private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    pair.public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return pair


def flip_byte(file: Path, at: int, bits: int = 0x01) -> None:
    """Changes one byte of a file in place."""
    content = bytearray(file.read_bytes())
    content[at] ^= bits
    file.write_bytes(content)
