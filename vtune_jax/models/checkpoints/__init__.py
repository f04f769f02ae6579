"""Published checkpoints in and out: Hugging Face folders and GGUF files as parameters of the decoder, and back."""
