"""Generated stubs of `protos/latentserve/compat/v1` (`make proto`)."""
