"""The Kubernetes API as our commands use it: objects, the client, waiting. Imported by the commands that need it."""
