"""Settings: every section of a config as a typed, frozen class, parsed once by `read_settings`."""
