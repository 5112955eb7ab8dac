"""Pages in a browser: a training report, the explorer, other pages that call the gateway."""
