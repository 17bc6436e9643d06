"""Records to masked tokens: chat templates, assistant masks and the encoder."""
