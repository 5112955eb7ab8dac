"""Faults played against real servers under load: what is promised in docs/reliability.md.

A `Fleet` of servers answers `load`, by gRPC with an `Envoy` in front of it and without one and by
HTTP, while a `Fault` is played. Every answer is compared to the byte with that of an undisturbed
server.
"""
