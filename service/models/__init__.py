"""Models: found on disk, verified, loaded onto a device, looked up by name and version."""
