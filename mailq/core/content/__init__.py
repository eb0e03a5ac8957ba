"""The content of a message: its MIME structure, and the changes that make it fit for a receiver. Pure."""
