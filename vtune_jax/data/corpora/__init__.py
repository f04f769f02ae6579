"""Documents in, tokens out: readers, embedded text, parts, the tokenizer, preparing."""
