"""The built-in plugins. Each folder is an island: it imports stainbridge, its own files and its own heavy library."""
