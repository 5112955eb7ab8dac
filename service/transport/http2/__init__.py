"""HTTP/2 (RFC 9113) for a server of gRPC, on asyncio; HPACK by the hpack library.

It knows nothing of gRPC: a `Connection` turns bytes into requests and hands them to
whoever accepts them. Only what a server needs is here: no push, no priorities (both
deprecated by the RFC), no upgrade from HTTP/1.1.
"""
