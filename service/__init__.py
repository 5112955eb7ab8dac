"""The gRPC model server. Never imports torch, training or export."""
