"""The commands: each parses, calls one pipeline function and prints."""
