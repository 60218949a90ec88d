"""Assembly of a config's parts: session, data, model, hooks, and checks that they fit together."""
