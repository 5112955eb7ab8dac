"""Listening sockets, accepted connections, file descriptors and TLS, for every port."""
