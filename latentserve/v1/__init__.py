"""Generated stubs of the wire contract, `protos/latentserve/v1` (`make proto`)."""
