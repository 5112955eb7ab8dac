"""The server: transport -> engine -> runtime. Never imports torch, training or export."""
