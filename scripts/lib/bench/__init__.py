"""scripts/bench: what a request and a streamed chunk cost in Hostler's gateway, beside nginx and other gateways."""
