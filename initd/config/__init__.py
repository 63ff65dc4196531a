"""The node's configuration: where it comes from, what it may say, and the files made from it."""
