"""From a config to its parts: sessions, data, models, hooks, and the checks that they fit each other."""
