"""Typed, frozen settings class for each section of a config, parsed once by `read_settings`."""
