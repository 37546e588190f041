"""The corpus of the embedded models: seeded generators, one file a task, and their registry in `tasks`."""
