"""What measures the figures of the documents: servers side by side, clients, streams, memory."""
