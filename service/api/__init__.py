"""The HTTP API: routes, request bodies, response schemas. May import versions and the rooms below it."""
