"""The documents that producers and consumers rely on: the description of queues, and an example of each schema."""
