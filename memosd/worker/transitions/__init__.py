"""The worker of transitions: memories made of other memories, with the model of the daemon."""
