"""The science: arrays and small values in, frozen results out. No sockets, database, clock or global state."""
