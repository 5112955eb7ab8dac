"""Server side of HTTP/2 (RFC 9113) on asyncio; HPACK by the hpack library.

It is independent of gRPC: a `Connection` turns bytes into requests, and its `Listener` answers
them. Server push, priorities (deprecated by the RFC) and the upgrade from HTTP/1.1 are not
implemented.

Imports go one way: frames, headers <- send_queue, outbox <- stream <- reader <- connection.
"""
