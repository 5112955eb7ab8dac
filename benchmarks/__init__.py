"""The programs behind the figures in the documents: servers, clients, streams, memory, training."""
