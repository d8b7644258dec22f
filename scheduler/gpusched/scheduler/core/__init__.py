"""The pure core: no I/O, clock, randomness, gRPC or SQL in here."""
